"""Asyncio on a simulated clock: when every task waits, the clock jumps to the next timer. Nothing really sleeps.

While `VirtualTime.run` runs a coroutine, `time.monotonic` (which the loop and every deadline read) is this clock.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine
from typing import Any, TypeVar
from unittest import mock

T = TypeVar("T")


class Clock:
    """A clock in seconds that the selector advances; each reading adds a microsecond, so that no two are equal."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        self.now_s += 1e-6
        return self.now_s


class _JumpingSelector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("deadlock: every task waits and no timer is set")
        if not ready and timeout:
            self._clock.now_s += timeout
        return ready


class VirtualTime:
    """An event loop and its clock; `run` may be called several times, and the clock continues."""

    def __init__(self) -> None:
        self.clock = Clock()
        with mock.patch.object(time, "monotonic", self.clock):
            self._loop = asyncio.SelectorEventLoop(_JumpingSelector(self.clock))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Returns what the coroutine returns; tasks that it leaves running continue in the next run."""
        with mock.patch.object(time, "monotonic", self.clock):
            return self._loop.run_until_complete(work)

    def close(self) -> None:
        """Cancels the tasks that are left, and closes the loop."""
        with mock.patch.object(time, "monotonic", self.clock):
            self._loop.run_until_complete(_end_all())
            self._loop.close()


async def _end_all() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def virtually(work: Coroutine[Any, Any, T]) -> T:
    """Returns what the coroutine returns, run on a simulated clock of its own."""
    world = VirtualTime()
    try:
        return world.run(work)
    finally:
        world.close()
