"""A blocking question, asked off the event loop and given up at a deadline."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(ask: Callable[[], T], *, deadline_s: float) -> T:
    """What `ask` returns or raises; TimeoutError after `deadline_s`.

    A question that hangs in the driver keeps its own daemon thread and no other: neither the loop's executor, whose
    end would be waited for, nor the exit of the program.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def tell(act: Callable[[], None]) -> None:
        try:
            loop.call_soon_threadsafe(lambda: None if answer.done() else act())
        except RuntimeError:
            return  # the loop was closed meanwhile: nobody waits any more

    def run() -> None:
        try:
            result = ask()
        except BaseException as error:
            failure = error
            tell(lambda: answer.set_exception(failure))
        else:
            tell(lambda: answer.set_result(result))

    threading.Thread(target=run, name="lifecycle-probe", daemon=True).start()
    async with asyncio.timeout(deadline_s):
        return await answer
