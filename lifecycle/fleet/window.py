"""A window: engines that gave their memory to a trainer, and how they are restored where it is left by an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import MappingProxyType

from ..core.errors import EngineBusy
from ..core.record import Desired
from ..core.states import State
from ..engine.engine import RECOVER_S, Engine
from ..rules.planner import Goal
from .preflight import stays_behind
from .recovery import recovered

#: What a task is given up by.
CANCELLED = (asyncio.CancelledError,)


@contextmanager
def window_lock(engines: Sequence[Engine], out: set[str]) -> Iterator[None]:
    """The names of these engines are in `out`; EngineBusy where one is already: two windows would share its memory,
    and the one that is left first would take it from under the other."""
    for engine in engines:
        if engine.name in out:
            raise engine.advised(EngineBusy("another offloaded()", **engine.about("offloaded")), Goal(State.RELEASED))
    names = {engine.name for engine in engines}
    out |= names
    try:
        yield
    finally:
        out -= names


@asynccontextmanager
async def restore_on_error(
    engines: Sequence[Engine],
    onload: Callable[[Sequence[Engine]], Awaitable[object]],
    *,
    after: tuple[type[BaseException], ...],
    before: Mapping[str, Desired] = MappingProxyType({}),
    deadline_s: float | None = None,
) -> AsyncIterator[None]:
    """An error of these kinds comes through once the engines serve again, with the weights of `before` where given.

    A second cancellation ends that too, and leaves them where they are. What fails on the way is noted on the error.
    """
    try:
        yield
    except after as error:
        try:
            await recovered([engine for engine in engines if engine.state is State.FAILED], deadline_s or RECOVER_S)
            Engine.rollback_desired_of([(each, before[each.name]) for each in engines if each.name in before])
            stuck = {engine.name: why for engine in engines if (why := stays_behind(engine)) is not None}
            for why in stuck.values():
                error.add_note(f"the fleet did not come back: {why}")
            await onload([engine for engine in engines if engine.name not in stuck])
        except Exception as also:
            error.add_note(f"the fleet did not come back: {also}")
        raise
