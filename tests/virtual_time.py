"""Asyncio on a clock that jumps: where everything waits, the time of the next timer has come. Nothing really sleeps.

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
    """Seconds that pass when they are told to, and a microsecond whenever somebody looks."""

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
            raise RuntimeError("everything waits, and nothing will ever come")
        if not ready and timeout:
            self._clock.now_s += timeout
        return ready


class VirtualTime:
    """An event loop and its clock; `run` may be called again and again, and the clock goes on."""

    def __init__(self) -> None:
        self.clock = Clock()
        with mock.patch.object(time, "monotonic", self.clock):
            self._loop = asyncio.SelectorEventLoop(_JumpingSelector(self.clock))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returned; tasks that it left behind go on in the next run."""
        with mock.patch.object(time, "monotonic", self.clock):
            return self._loop.run_until_complete(work)

    def close(self) -> None:
        """The loop is closed; tasks that are left were cancelled."""
        with mock.patch.object(time, "monotonic", self.clock):
            self._loop.run_until_complete(_end_all())
            self._loop.close()


async def _end_all() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def virtually(work: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returned, run in a virtual time of its own."""
    world = VirtualTime()
    try:
        return world.run(work)
    finally:
        world.close()
