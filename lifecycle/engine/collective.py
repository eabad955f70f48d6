"""What several engines do together or not at all: each arrives, then all go on, and one failure fails it for all.

A push is such: the trainer sends once all wait for it. So is the release of several engines: none is sent anything
before the guards of all have passed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..core.sources import Pushed, PushTarget


class CollectiveFailed(Exception):
    """A participant failed, and nothing was done for any; `__cause__` is what failed first."""


class Collective:
    """Several engines that wait for each other: all arrive, `source` is pushed if it is one, all go on; or all fail."""

    def __init__(self, source: Pushed | None, parties: Sequence[PushTarget]) -> None:
        if not parties:
            raise ValueError("a collective needs at least one engine")
        self._source = source
        self._parties = parties
        self._missing = {engine.name for engine in parties}
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pushing: asyncio.Task[None] | None = None

    async def arrive(self, name: str) -> None:
        """Returns when all have arrived and the push has ended; raises CollectiveFailed where any part of it failed."""
        self._missing.discard(name)
        if not self._missing and self._pushing is None and not self._done.done():
            if self._source is None:
                self._done.set_result(None)
            else:
                self._pushing = asyncio.create_task(self._push(self._source))
        await asyncio.shield(self._done)

    def fail(self, error: BaseException, *, who: str) -> None:
        """Fails the collective for everyone, unless it has ended already."""
        if self._done.done():
            return
        what = "the others are not ready" if self._source is None else "the push failed for every engine"
        failure = CollectiveFailed(f"{what}: {who}: {error or type(error).__name__}")
        failure.__cause__ = error
        self._done.set_exception(failure)
        self._done.exception()  # marks it as seen: a collective that nobody waits for is no leak
        if self._pushing is not None:
            self._pushing.cancel()

    async def _push(self, source: Pushed) -> None:
        try:
            if source.push is None:
                raise ValueError("the push has no callback in this process; give it one: source.bind(callback)")
            await source.push(self._parties)
        except BaseException as error:
            self.fail(error, who="the trainer")
            if not isinstance(error, Exception):
                raise
        else:
            if not self._done.done():
                self._done.set_result(None)
