"""One scan of a host for all who ask at once.

A scan takes as long for one question as for a hundred. It answers everybody who asked before it began, and nobody who
asked later: what it saw may have changed before they asked, for example by a restart. Those have the next one, which
begins when this one has ended. So no answer is older than its question, and nothing is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from .in_thread import in_thread

Q = TypeVar("Q", bound=Hashable)
T = TypeVar("T")


@dataclass(slots=True)
class _Queue(Generic[Q, T]):
    """The scan under way, and the one for which new questions wait, in one event loop."""

    running: asyncio.Task[Mapping[Q, T]] | None = None
    waiting: asyncio.Task[Mapping[Q, T]] | None = None
    #: The questions that wait, each once, in the order in which they were asked first.
    questions: dict[Q, None] = field(default_factory=dict)
    #: The longest that anybody who waits may wait: seconds that the scan may take.
    longest_s: float = 0.0


@dataclass(slots=True)
class SharedAnswers(Generic[Q, T]):
    """A blocking function that answers many questions, called in a thread with all that wait when it begins."""

    answer: Callable[[Collection[Q]], Mapping[Q, T]]
    _queues: WeakKeyDictionary[asyncio.AbstractEventLoop, _Queue[Q, T]] = field(default_factory=WeakKeyDictionary)

    async def ask(self, question: Q, *, deadline_s: float) -> T:
        """What a call found that began after this was asked. Raises TimeoutError, and what the function raises."""
        queue = self._queues.setdefault(asyncio.get_running_loop(), _Queue())
        queue.longest_s = max(queue.longest_s, deadline_s)
        queue.questions[question] = None
        if queue.waiting is None:
            queue.waiting = asyncio.create_task(self._next(queue), name="lifecycle-scan")
            queue.waiting.add_done_callback(_seen)
        async with asyncio.timeout(deadline_s):
            return (await asyncio.shield(queue.waiting))[question]

    async def _next(self, queue: _Queue[Q, T]) -> Mapping[Q, T]:
        if queue.running is not None:
            await asyncio.wait({queue.running})
        queue.running, queue.waiting = queue.waiting, None
        longest_s, queue.longest_s = queue.longest_s, 0.0
        questions, queue.questions = tuple(queue.questions), {}
        return await in_thread(lambda: self.answer(questions), deadline_s=longest_s)


class SharedScan(Generic[T]):
    """A blocking function without arguments, whose result serves every caller that waits when it begins."""

    def __init__(self, scan: Callable[[], T]) -> None:
        self._answers = SharedAnswers[None, T](lambda _: {None: scan()})

    async def result(self, *, deadline_s: float) -> T:
        """What a scan found that began after this was called. Raises TimeoutError, and what the scan raises."""
        return await self._answers.ask(None, deadline_s=deadline_s)


def _seen(task: asyncio.Task[Any]) -> None:
    """Marks an error as seen, where all who waited have given up."""
    if not task.cancelled():
        task.exception()
