"""Signals that end a command: SIGTERM and SIGHUP bring engines home as Ctrl-C does.

asyncio cancels what runs at a first SIGINT. A process manager sends SIGTERM instead, and a terminal that is closed
sends SIGHUP. The first of them cancels the command, which then ends as it does when it is interrupted; a second one
cancels that end too.

A command that was cancelled in the middle of a call leaves an engine of which nothing is certain, and which no other
driver may attach to while the call may run. So this process finds out where it is before it ends.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from ..core.states import State
from ..engine.engine import Engine
from ..fleet.fleet import Fleet
from . import Interrupted

R = TypeVar("R")

_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def until_interrupted() -> Iterator[Callable[[], bool]]:
    """What runs inside asks the function whether Ctrl-C was pressed, and ends then; a second one interrupts it.

    An exception in the middle of a print would have the same line printed again at the end.
    """
    before = signal.getsignal(signal.SIGINT)
    pressed: list[int] = []

    def end(number: int, _: object) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, before)

    if before is not signal.SIG_IGN:
        with suppress(ValueError):  # in another thread
            signal.signal(signal.SIGINT, end)
    try:
        yield lambda: bool(pressed)
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGINT, before)


def run(main: Callable[[], Coroutine[Any, Any, R]]) -> R:
    """What the coroutine returned or raised, as `asyncio.run` does; Interrupted where a signal has ended it.

    A signal that this process was started to ignore (`nohup`) is ignored.
    """
    received: list[int] = []

    async def listening() -> R:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def end(number: int) -> None:
            received.append(number)
            task.cancel()

        for each in _ENDING:
            if signal.getsignal(each) is not signal.SIG_IGN:
                with suppress(NotImplementedError, RuntimeError, ValueError):  # elsewhere, or in another thread
                    loop.add_signal_handler(each, end, each)
        return await main()

    try:
        return asyncio.run(listening())
    except asyncio.CancelledError:
        if received:
            raise Interrupted("interrupted", code=128 + received[0]) from None
        raise
    except Interrupted as error:
        error.code = 128 + received[0] if received else error.code
        raise


async def interrupted(fleet: Fleet, engines: Sequence[Engine]) -> Interrupted:
    """The error of a command that was cancelled: where it left the engines, and what leads on.

    Those that it left failed are observed, for at most `Policy.settle_s` or until a second signal.
    """
    failed = [each for each in engines if each.state is State.FAILED]
    with suppress(asyncio.CancelledError):
        await fleet.recover(engines=failed, deadline_s=fleet.policy.settle_s)
    states = ", ".join(f"{each.name} is {each.state}" for each in engines)
    leads_on = dict.fromkeys(str(each.advice) for each in engines if each.state is not State.SERVING)
    return Interrupted(". ".join([f"interrupted; {states}", *leads_on]))
