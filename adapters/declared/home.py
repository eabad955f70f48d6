"""Where the verbs of one engine are called: one at a time, and each until it has ended.

A call that was begun cannot be undone, so that it is never cancelled. Who waits for it stops waiting at its deadline,
and the call goes on. Nothing else is begun until it has ended: a sync actor runs one call at a time, and what comes
behind a call that hangs would run long after its own deadline.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from lifecycle.core.deadline import Deadline
from lifecycle.nodes.in_thread import in_thread

#: Seconds after which a call in a thread is given up: none is, as long as a program runs.
NEVER_S = 1e9


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a call: it `returned`, `raised`, `runs` still, or `waited` behind another and never began."""

    what: Literal["returned", "raised", "runs", "waited"]
    value: Any = None
    error: Exception | None = None


class Home:
    """Makes the calls. A function runs in a thread, a coroutine function on the loop of its caller."""

    def __init__(self) -> None:
        self._last: asyncio.Future[Any] | None = None
        #: The name of the call that was begun last.
        self.last_name = ""

    @property
    def busy(self) -> bool:
        """Whether a call runs."""
        return self._last is not None and not self._last.done()

    async def run(self, name: str, call: Callable[[], Any], deadline_s: float) -> Outcome:
        """What became of this call by the deadline."""
        clock = Deadline(deadline_s)
        while self.busy:
            if not await self.all_ended(clock.left_s):
                return Outcome("waited")
        made = self._last = asyncio.ensure_future(_made(call))
        made.add_done_callback(_seen)
        self.last_name = name
        await asyncio.wait({made}, timeout=clock.left_s)
        if not made.done():
            return Outcome("runs")
        if made.cancelled():
            return Outcome("raised", error=RuntimeError("it was cancelled, by whom it ran under"))
        error = made.exception()
        if error is None:
            return Outcome("returned", made.result())
        if not isinstance(error, Exception):
            raise error
        return Outcome("raised", error=error)

    async def all_ended(self, deadline_s: float) -> bool:
        """Whether every call that was begun has ended by the deadline."""
        if self._last is not None and not self._last.done():
            await asyncio.wait({self._last}, timeout=deadline_s)
        return not self.busy


async def _made(call: Callable[[], Any]) -> Any:
    """What the call returned; where that can be awaited, alone or as a list of it, what came of that."""
    value = call() if _is_coroutine_function(call) else await in_thread(partial(_called, call), deadline_s=NEVER_S)
    if inspect.isawaitable(value):
        return await value
    if isinstance(value, list | tuple) and value and all(inspect.isawaitable(each) for each in value):
        return list(await asyncio.gather(*value, return_exceptions=True))
    return value


def _called(call: Callable[[], Any]) -> Any:
    """What the call returned. What ends a program or an iteration ends neither here: it is an error like any other."""
    try:
        return call()
    except (SystemExit, StopIteration) as error:
        raise RuntimeError(f"it raised {type(error).__name__}: {error}") from error


def _is_coroutine_function(call: Callable[..., Any]) -> bool:
    while isinstance(call, partial):
        call = call.func
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None))  # noqa: B004


def _seen(ended: asyncio.Future[Any]) -> None:
    """What it raised is no surprise, where nobody waits for it any more."""
    if not ended.cancelled():
        ended.exception()
