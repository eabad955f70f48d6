"""Which engines a move or a window has: all of its leases are taken first, and what is known is of now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from ..engine.engine import Engine
from ..engine.verify import VERIFY_S


@asynccontextmanager
async def leased(engines: Sequence[Engine], what: str, deadline_s: float | None = None) -> AsyncIterator[None]:
    """The engines are this driver's, and what is known of them is of now; EngineHeld names one that another has."""
    with Engine.leased_together(engines, what):
        await _caught_up(engines, deadline_s)
        yield


@asynccontextmanager
async def claimed(engines: Sequence[Engine], move: str, deadline_s: float | None = None) -> AsyncIterator[None]:
    """The engines belong to this move; EngineBusy names one that another has, and then none is claimed.

    Every lease is taken before anything is sent, so that two drivers never move a half of the same engines each.
    """
    with Engine.claimed_together(engines, move):
        await _caught_up(engines, deadline_s)
        yield


async def _caught_up(engines: Sequence[Engine], deadline_s: float | None) -> None:
    """What is known of all these engines is of now; raises once all have ended."""
    behind = [engine for engine in engines if engine.is_behind]
    ended = await asyncio.gather(*(engine.caught_up(deadline_s) for engine in behind), return_exceptions=True)
    for problem in ended:
        if isinstance(problem, BaseException):
            raise problem


async def verify_all(engines: Sequence[Engine], deadline_s: float | None = None, *, for_move: bool = False) -> None:
    """These engines were verified, all at once: what is denied of them was given up."""
    limit_s = VERIFY_S if deadline_s is None else deadline_s
    async with asyncio.TaskGroup() as group:
        for engine in engines:
            group.create_task(engine.verify(deadline_s=limit_s, for_move=for_move))
