"""Cases written as coroutines, run by pytest without a plugin."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable

from .conformance_bench import Bench

Case = Callable[..., Awaitable[None]]


def story(case: Case) -> Callable[..., None]:
    """The case, run to its end in an event loop of its own; its engines' connections are closed then."""

    @functools.wraps(case)
    def run(suite: object, bench: Bench, **arguments: object) -> None:
        async def whole() -> None:
            try:
                await case(suite, bench, **arguments)
            finally:
                await bench.aclose()

        asyncio.run(whole())

    return run
