"""The caller's step in an onload, between the weights and the KV cache."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

from .course import Course

#: The caller's step between weights and KV. What it returns is awaited where that can be.
Between = Callable[[], Awaitable[object] | object]


async def called(step: Between, deadline_s: float | None, course: Course, others: str) -> None:
    """The step has ended; what it raises says what became of the engines, and who failed before."""
    try:
        async with asyncio.timeout(deadline_s):
            result = step()
            if inspect.isawaitable(result):
                await result
    except Exception as error:
        names = ", ".join(f"{engine.name} {engine.state}" for engine in course.active)
        error.add_note(f"raised between weights and KV; the engines {others}: {names}")
        if course.failed:
            error.add_note(str(course.error()))
        raise
