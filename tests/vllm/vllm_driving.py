"""A server that answers as vLLM, and an adapter that is connected to it, for one test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from lifecycle.adapters.vllm import VLLMAdapter
from vllm_server import RecordedServer

from lifecycle import Call, Fact, Facts, Reply
from lifecycle.core.commands import Command
from lifecycle.core.facts import Contents, Grade
from lifecycle.nodes.address import parse

ADMITTING: Mapping[Fact, Any] = {
    Fact.BOOT: "1f4c9",
    Fact.ADMISSION: "open",
    Fact.MAPPED: {"weights": True, "kv_cache": True},
    Fact.CONTENTS: {"weights": Contents("launched", "default")},
    Fact.CACHE_FRESH: True,
}


def facts(**changes: Any) -> Facts:
    """What is known of an engine that serves, with these changes, by name."""
    return Facts().learn({**ADMITTING, **{Fact(name): value for name, value in changes.items()}}, Grade.REPORTED)


def closed(mode: str = "abort", **changes: Any) -> Facts:
    """What is known of an engine that is drained."""
    return facts(**{"admission": "closed", "paused_by": mode, "running": 0, **changes})


@asynccontextmanager
async def driven(
    version: str = "0.32.0", *, options: str = "", **how: Any
) -> AsyncIterator[tuple[RecordedServer, VLLMAdapter]]:
    """A server of this version, and an adapter that has connected; nothing of that is in what the server has seen."""
    async with RecordedServer(version, **how) as server:
        adapter = VLLMAdapter(parse(server.url + (f"?{options}" if options else "")))
        try:
            await adapter.connect(deadline_s=10)
            adapter._at_connect = None
            server.seen.clear()
            yield server, adapter
        finally:
            await adapter.aclose()


async def carried_out(adapter: VLLMAdapter, command: Command, known: Facts, deadline_s: float = 5.0) -> list[Reply]:
    """The replies to the calls of a command, until one is not done."""
    replies = []
    for call in adapter.plan(command, known):
        replies.append(await adapter.send(call, deadline_s=deadline_s))
        if replies[-1].outcome != "done":
            break
    return replies


def after(adapter: VLLMAdapter, command: Command, known: Facts) -> Facts:
    """What is known once every call of a command was acknowledged."""
    for call in adapter.plan(command, known):
        known = known.learn(call.effect, Grade.ACKNOWLEDGED, cause=call.name)
    return known


def call_of(adapter: VLLMAdapter, command: Command, known: Facts, name: str) -> Call:
    """The call of this name in the plan of a command."""
    return next(call for call in adapter.plan(command, known) if call.name == name)
