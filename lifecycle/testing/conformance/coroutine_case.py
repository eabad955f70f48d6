"""Runs a case that is a coroutine: pytest needs no plugin for it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable

from .bench import Bench

Case = Callable[..., Awaitable[None]]


def coroutine_case(case: Case) -> Callable[..., None]:
    """Runs the case in an event loop of its own, and closes the connections of its engines in the end."""

    @functools.wraps(case)
    def run(suite: object, bench: Bench, **arguments: object) -> None:
        async def run_and_close() -> None:
            try:
                await case(suite, bench, **arguments)
            finally:
                await bench.aclose()

        asyncio.run(run_and_close())

    return run
