"""Blocking calls, made in a thread of their own and given up at a deadline."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from ..core.verdicts import Unmeasurable
from .driver import DriverUnavailable

T = TypeVar("T")


async def in_thread(call: Callable[[], T], *, deadline_s: float) -> T:
    """Returns or raises what `call` does; raises TimeoutError after `deadline_s` seconds.

    Each call has a daemon thread of its own. A call that hangs in the driver therefore delays neither the shutdown of
    the loop's executor nor the exit of the program.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def deliver(set_outcome: Callable[[], None]) -> None:
        try:
            loop.call_soon_threadsafe(lambda: None if result.done() else set_outcome())
        except RuntimeError:
            return  # the loop was closed meanwhile, so that nothing awaits the result

    def run() -> None:
        try:
            value = call()
        except BaseException as error:
            failure = error
            deliver(lambda: result.set_exception(failure))
        else:
            deliver(lambda: result.set_result(value))

    threading.Thread(target=run, name="lifecycle-probe", daemon=True).start()
    async with asyncio.timeout(deadline_s):
        return await result


async def measure_in_thread(call: Callable[[], T], *, deadline_s: float, action: str) -> T | Unmeasurable:
    """Returns what `call` returns, or Unmeasurable where it took over `deadline_s` or the driver was unavailable.

    `action` says in the reason what was being done, as in "reading the hook mode".
    """
    try:
        return await in_thread(call, deadline_s=deadline_s)
    except TimeoutError:
        return Unmeasurable(reason=f"{action} took more than {deadline_s:.1f} s")
    except DriverUnavailable as error:
        return Unmeasurable(reason=str(error))
