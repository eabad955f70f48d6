"""Effects run in one thread, in turn; one that was begun always ends, whoever stops waiting for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of an effect: its value, or the exception that it raised."""

    value: Any = None
    error: Exception | None = None


class Effects:
    """The thread in which everything that touches an engine's memory happens."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"lifecycle-{name}")
        self._last: Future[Ended] | None = None

    async def run(self, work: Callable[[], Any], deadline_s: float) -> Ended | None:
        """What became of the work; None where it still ran when the deadline passed: it goes on.

        A cancellation waits for it first: an effect in this process cannot be taken back.
        """
        self._last = self._thread.submit(_ended, work)
        return await _joined(self._last, deadline_s)

    async def settled(self, deadline_s: float) -> bool:
        """Whether everything begun before has ended."""
        return self._last is None or await _joined(self._last, deadline_s) is not None

    def close(self) -> None:
        """No more effects; what was begun has ended."""
        self._thread.shutdown(wait=True)


def _ended(work: Callable[[], Any]) -> Ended:
    try:
        return Ended(work())
    except Exception as error:
        return Ended(error=error)


async def _joined(future: Future[Ended], deadline_s: float) -> Ended | None:
    end = time.monotonic() + deadline_s
    cancelled: asyncio.CancelledError | None = None
    while not future.done() and time.monotonic() < end:
        try:
            await _woken(future, end - time.monotonic())
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return future.result() if future.done() else None


async def _woken(future: Future[Ended], timeout_s: float) -> None:
    """Returns when the future is done or the time is up; the future is left alone."""
    loop, woken = asyncio.get_running_loop(), asyncio.Event()

    def wake(_: Future[Ended]) -> None:
        try:
            loop.call_soon_threadsafe(woken.set)
        except RuntimeError:
            return  # the loop was closed meanwhile; nobody waits

    future.add_done_callback(wake)
    try:
        async with asyncio.timeout(timeout_s):
            await woken.wait()
    except TimeoutError:
        return
