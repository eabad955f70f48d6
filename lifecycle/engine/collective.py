"""The collective of a push: every engine of an update takes part, and one failure fails it for all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..core.sources import Pushed, PushTarget


class CollectiveFailed(Exception):
    """A participant of the push failed, so nobody's weights are valid; `__cause__` is what failed first."""


class Collective:
    """One push over several engines: all arrive, the trainer sends once, all go on; or all fail."""

    def __init__(self, source: Pushed, parties: Sequence[PushTarget]) -> None:
        if not parties:
            raise ValueError("a push needs at least one engine")
        self._source = source
        self._parties = parties
        self._missing = {engine.name for engine in parties}
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pushing: asyncio.Task[None] | None = None

    async def arrive(self, name: str) -> None:
        """Returns when the trainer's push has ended; raises CollectiveFailed where any part of it failed."""
        self._missing.discard(name)
        if not self._missing and self._pushing is None and not self._done.done():
            self._pushing = asyncio.create_task(self._push())
        await asyncio.shield(self._done)

    def fail(self, error: BaseException, *, who: str) -> None:
        """Fails the collective for everyone, unless it has ended already."""
        if self._done.done():
            return
        failure = CollectiveFailed(f"the push failed for every engine: {who}: {error or type(error).__name__}")
        failure.__cause__ = error
        self._done.set_exception(failure)
        self._done.exception()  # marks it as seen: a collective that nobody waits for is no leak
        if self._pushing is not None:
            self._pushing.cancel()

    async def _push(self) -> None:
        try:
            if self._source.push is None:
                raise ValueError("the push has no callback in this process; give it one: source.bind(callback)")
            await self._source.push(self._parties)
        except BaseException as error:
            self.fail(error, who="the trainer")
            if not isinstance(error, Exception):
                raise
        else:
            if not self._done.done():
                self._done.set_result(None)
