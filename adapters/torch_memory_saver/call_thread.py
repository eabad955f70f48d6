"""Runs an engine's calls in one thread, one after another.

A call that has begun always runs to its end. A caller whose deadline passes stops waiting for it. A caller that is
cancelled still waits until it has ended or the deadline has passed, since the call cannot be undone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """The value that a call returned, or the exception that it raised."""

    value: Any = None
    error: Exception | None = None


class CallThread:
    """The one thread in which every call that touches the engine's memory runs."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"lifecycle-{name}")
        self._last: Future[Outcome] | None = None

    async def run(self, work: Callable[[], Any], deadline_s: float) -> Outcome | None:
        """Runs `work` and returns its outcome; None where it still runs at the deadline, and then it runs on."""
        self._last = self._thread.submit(_outcome_of, work)
        return await _join(self._last, deadline_s)

    async def all_ended(self, deadline_s: float) -> bool:
        """Waits for every call begun before; False where one still runs at the deadline."""
        return self._last is None or await _join(self._last, deadline_s) is not None

    def close(self) -> None:
        """Ends the thread once the calls that were begun have ended."""
        self._thread.shutdown(wait=True)


def _outcome_of(work: Callable[[], Any]) -> Outcome:
    try:
        return Outcome(work())
    except Exception as error:
        return Outcome(error=error)


async def _join(future: Future[Outcome], deadline_s: float) -> Outcome | None:
    end = time.monotonic() + deadline_s
    cancelled: asyncio.CancelledError | None = None
    while not future.done() and time.monotonic() < end:
        try:
            await _wait(future, end - time.monotonic())
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return future.result() if future.done() else None


async def _wait(future: Future[Outcome], timeout_s: float) -> None:
    """Returns when the future is done or the time is up. The future is never cancelled."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def wake(_: Future[Outcome]) -> None:
        try:
            loop.call_soon_threadsafe(done.set)
        except RuntimeError:
            return  # the loop has been closed, so no caller waits

    future.add_done_callback(wake)
    try:
        async with asyncio.timeout(timeout_s):
            await done.wait()
    except TimeoutError:
        return
