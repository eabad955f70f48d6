"""An event loop of the explorer: a virtual clock, and nothing happens but what is chosen.

Between two choices every task runs until all of them wait, in the order in which they became ready. What they wait for
are questions and calls to engines, timers, and each other. Then `World.choose_next` says which of these ends next.
"""

from __future__ import annotations

import asyncio
import heapq
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from typing import Any
from unittest import mock

#: Where the clocks begin. Every instant of a run is later, and every duration shorter.
BEGIN_S = 1e6
WALL_S = 1e9


class Apart:
    """What a fingerprint does not read where it meets it: what matters of it is read for itself."""


class Deadlock(AssertionError):
    """Every task waits, and nothing can end that."""


class _Nothing(selectors.BaseSelector):
    """No file is ever ready; asyncio wants a selector for its own pipe."""

    def __init__(self) -> None:
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self._keys[fileobj] = selectors.SelectorKey(fileobj, -1, events, data)
        return self._keys[fileobj]

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[Any]:
        return []

    def get_map(self) -> Any:
        return self._keys


class ChosenLoop(asyncio.SelectorEventLoop):
    """Runs one handle a turn. With none that is ready it asks `quiet`, which must make one ready, or raise.

    `runs` says whether the driver in whose context something was begun still lives.
    """

    def __init__(self, quiet: Callable[[], None], runs: Callable[[Context], bool]) -> None:
        super().__init__(_Nothing())
        self._quiet = quiet
        self._runs = runs
        self.now_s = BEGIN_S

    def time(self) -> float:
        return self.now_s

    def wall(self) -> float:
        return WALL_S + self.now_s - BEGIN_S

    def _run_once(self) -> None:
        self._due()
        if not self._ready:
            self._quiet()
            self._due()
        if self._ready:
            handle = self._ready.popleft()
            if not handle._cancelled and self._runs(handle._context):
                handle._run()

    def _due(self) -> None:
        while self._scheduled and (self._scheduled[0]._cancelled or self._scheduled[0]._when <= self.now_s):
            handle = heapq.heappop(self._scheduled)
            handle._scheduled = False
            if not handle._cancelled and self._runs(handle._context):
                self._ready.append(handle)

    def next_timer_s(self) -> float | None:
        """When the next timer fires; None where none is set."""
        self._due()
        return self._scheduled[0]._when if self._scheduled else None

    def waiting_timers(self) -> list[float]:
        """Seconds until each timer fires, in order."""
        waiting = [each for each in self._scheduled if not each._cancelled and self._runs(each._context)]
        return sorted(round(each._when - self.now_s, 6) for each in waiting)

    @contextmanager
    def clocks(self) -> Iterator[None]:
        """Whoever asks what time it is, is told the time of this loop."""
        with (
            mock.patch.object(time, "monotonic", self.time),
            mock.patch.object(time, "time", self.wall),
            mock.patch.object(time, "clock_gettime", side_effect=lambda which: self.time()),
        ):
            yield

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What the coroutine returns."""
        with self.clocks():
            return self.run_until_complete(work)

    def abandon(self) -> None:
        """What is left is ended, and runs no more."""
        with self.clocks():
            tasks = asyncio.all_tasks(self)
            self._ready.clear()
            self._scheduled.clear()
            for task in tasks:
                task._log_destroy_pending = False
                with suppress(BaseException):
                    task.get_coro().close()
            self._ready.clear()
            self.close()
