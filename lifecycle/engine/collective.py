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
        self._ended = False
        self._failure: CollectiveFailed | None = None
        #: Who waits, each by a future of its own, which becomes False where it waited for too long; and until when.
        self._waiting: dict[asyncio.Future[bool], float] = {}
        #: Goes off when the first of them has waited for too long. One for all: 10,000 engines wait at once.
        self._timer: asyncio.TimerHandle | None = None
        self._pushing: asyncio.Task[None] | None = None

    async def arrive(self, name: str, *, deadline_s: float) -> None:
        """Returns when all have arrived and the push has ended.

        Raises CollectiveFailed where any part of it failed, and TimeoutError where it has not ended in `deadline_s`.
        """
        self._missing.discard(name)
        if not self._missing and self._pushing is None and not self._ended:
            if self._source is None:
                self._end()
            else:
                self._pushing = asyncio.create_task(self._push(self._source))
        if not self._ended and not await self._wait(deadline_s) and not self._ended:
            raise TimeoutError
        if self._failure is not None:  # each waiter raises its own: a traceback keeps every frame that it has passed
            raise CollectiveFailed(str(self._failure)) from self._failure.__cause__

    def fail(self, error: BaseException, *, who: str) -> None:
        """Fails the collective for everyone, unless it has ended already."""
        if self._ended:
            return
        what = "the others are not ready" if self._source is None else "the push failed for every engine"
        self._failure = CollectiveFailed(f"{what}: {who}: {str(error) or type(error).__name__}")
        self._failure.__cause__ = error
        self._end()
        if self._pushing is not None:
            self._pushing.cancel()

    def _end(self) -> None:
        self._ended = True
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(True)

    def _wait(self, deadline_s: float) -> asyncio.Future[bool]:
        """Becomes True once the collective has ended, and False where that takes longer."""
        loop = asyncio.get_running_loop()
        waiting, until_s = loop.create_future(), loop.time() + deadline_s
        self._waiting[waiting] = until_s
        waiting.add_done_callback(self._waits_no_more)
        if self._timer is None or until_s < self._timer.when():
            self._set_timer(until_s)
        return waiting

    def _waits_no_more(self, waiting: asyncio.Future[bool]) -> None:
        del self._waiting[waiting]
        if not self._waiting:
            self._set_timer(None)

    def _set_timer(self, when: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if when is None else asyncio.get_running_loop().call_at(when, self._late, when)

    def _late(self, when: float) -> None:
        """Those who wait until then have waited for too long."""
        for waiting, until_s in self._waiting.items():
            if until_s <= when and not waiting.done():
                waiting.set_result(False)
        self._set_timer(min((until_s for until_s in self._waiting.values() if until_s > when), default=None))

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
            self._end()
