"""A server that answers as tokenspeed, and an adapter that is connected to it, for one test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from lifecycle.adapters.tokenspeed import TokenspeedAdapter
from tokenspeed_server import RecordedServer

from lifecycle import Fact, Facts
from lifecycle.core.facts import Contents, Grade
from lifecycle.nodes.address import parse

ADMITTING: Mapping[Fact, Any] = {
    Fact.BOOT: "2026-11-30T09:00:00Z",
    Fact.ADMISSION: "open",
    Fact.MAPPED: {"weights": True, "kv_cache": True},
    Fact.CONTENTS: {"weights": Contents("launched", "default")},
    Fact.CACHE_FRESH: True,
}


def facts(**changes: Any) -> Facts:
    """What is known of an engine that serves, with these changes, by name."""
    return Facts().learn({**ADMITTING, **{Fact(name): value for name, value in changes.items()}}, Grade.REPORTED)


def closed(**changes: Any) -> Facts:
    """What is known of an engine that is drained."""
    return facts(**{"admission": "closed", "paused_by": "wait", "running": 0, **changes})


RELEASED = {"mapped": {"weights": False, "kv_cache": False}}


@asynccontextmanager
async def driven(*, options: str = "", **how: Any) -> AsyncIterator[tuple[RecordedServer, TokenspeedAdapter]]:
    """A server, and an adapter that has connected; nothing of that is in what the server has seen."""
    async with RecordedServer(**how) as server:
        adapter = TokenspeedAdapter(parse(server.url + (f"?{options}" if options else "")))
        try:
            await adapter.connect(deadline_s=10)
            server.seen.clear()
            yield server, adapter
        finally:
            await adapter.aclose()
