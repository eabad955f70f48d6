"""Cases written as coroutines, run by pytest without a plugin."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec

from .conformance_bench import Bench

P = ParamSpec("P")


def story(case: Callable[Concatenate[Any, Bench, P], Awaitable[None]]) -> Callable[Concatenate[Any, Bench, P], None]:
    """The case, run to its end in an event loop of its own; its engines' connections are closed then."""

    @functools.wraps(case)
    def run(suite: Any, bench: Bench, *args: P.args, **kwargs: P.kwargs) -> None:
        async def whole() -> None:
            try:
                await case(suite, bench, *args, **kwargs)
            finally:
                await bench.aclose()

        asyncio.run(whole())

    return run
