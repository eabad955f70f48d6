"""One scan of a host for all who ask at once.

A scan takes as long for one question as for a hundred. It answers everybody who asked before it began, and nobody who
asked later: what it saw may have changed before they asked, for example by a restart. Those have the next one, which
begins when this one has ended. So no answer is older than its question, and nothing is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from .in_thread import in_thread

T = TypeVar("T")


@dataclass(slots=True)
class _Queue(Generic[T]):
    """The scan under way, and the one for which new questions wait, in one event loop."""

    running: asyncio.Task[T] | None = None
    waiting: asyncio.Task[T] | None = None
    #: The longest that anybody who waits may wait: seconds that the scan may take.
    longest_s: float = 0.0


@dataclass(slots=True)
class SharedScan(Generic[T]):
    """A blocking function, called in a thread, whose result serves every caller that waits when it begins."""

    scan: Callable[[], T]
    _queues: WeakKeyDictionary[asyncio.AbstractEventLoop, _Queue[T]] = field(default_factory=WeakKeyDictionary)

    async def result(self, *, deadline_s: float) -> T:
        """What a scan found that began after this was called. Raises TimeoutError, and what the scan raises."""
        queue = self._queues.setdefault(asyncio.get_running_loop(), _Queue())
        queue.longest_s = max(queue.longest_s, deadline_s)
        if queue.waiting is None:
            queue.waiting = asyncio.create_task(self._next(queue), name="lifecycle-scan")
            queue.waiting.add_done_callback(_seen)
        async with asyncio.timeout(deadline_s):
            return await asyncio.shield(queue.waiting)

    async def _next(self, queue: _Queue[T]) -> T:
        if queue.running is not None:
            await asyncio.wait({queue.running})
        queue.running, queue.waiting = queue.waiting, None
        longest_s, queue.longest_s = queue.longest_s, 0.0
        return await in_thread(self.scan, deadline_s=longest_s)


def _seen(task: asyncio.Task[T]) -> None:
    """Marks an error as seen, where all who waited have given up."""
    if not task.cancelled():
        task.exception()
