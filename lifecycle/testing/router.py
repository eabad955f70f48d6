"""A router in memory that fails as scripted and writes into the engines' journal."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from .journal import Entry, Journal


class ScriptedRouter:
    """Sends requests to every engine not closed. `close_fails` and `open_fails` are raised where they are set."""

    def __init__(self, journal: Journal | None = None) -> None:
        self.journal = Journal() if journal is None else journal
        self.closed: set[str] = set()
        self.close_fails: Exception | None = None
        self.open_fails: Exception | None = None
        #: Engines that it reports as open even after they were closed.
        self.unconfirmed: frozenset[str] = frozenset()
        #: Engines of which it reports nothing.
        self.silent: frozenset[str] = frozenset()

    async def close(self, engines: Sequence[str]) -> None:
        """Stops sending requests to these engines, unless scripted otherwise."""
        await asyncio.sleep(0)
        self._note("close", engines)
        if self.close_fails is not None:
            raise self.close_fails
        self.closed |= set(engines)

    async def open(self, engines: Sequence[str]) -> None:
        """Sends requests to these engines again."""
        await asyncio.sleep(0)
        self._note("open", engines)
        if self.open_fails is not None:
            raise self.open_fails
        self.closed -= set(engines)

    async def is_open(self, engine: str) -> bool | None:
        """Whether it sends requests to this engine; None where it reports nothing."""
        await asyncio.sleep(0)
        return None if engine in self.silent else engine not in self.closed - self.unconfirmed

    async def in_flight(self, engine: str) -> int | None:
        """Returns None: it does not count requests."""
        return None

    def _note(self, what: str, engines: Sequence[str]) -> None:
        for engine in engines:
            self.journal.append(Entry(engine, "router", what))
