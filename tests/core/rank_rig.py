"""Ranks of a job in this process: a fleet of scripted engines each, and verbs that all of them call at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from rig import V1, new_engine

from lifecycle import Fleet, FleetError, State
from lifecycle.testing import QUICK, Journal, ranks_in_memory

WORLD = 3
#: Long enough for every phase of scripted engines, and what a rank that is missing costs the others.
LIMIT_S = 1.0


async def ranks(
    world_size: int = WORLD, *, policy: Any = QUICK, groups: Any = None, names: Sequence[str] = ("e",), **how: Any
) -> list[Fleet]:
    """A fleet for each rank, connected, of engines `NAME.RANK`. All write in one journal, which is empty then."""
    journal, fleets = Journal(), []
    for agreement in ranks_in_memory(world_size):
        engines = [new_engine(f"{name}{agreement.rank}", journal=journal, policy=policy, **how) for name in names]
        fleet = Fleet(engines, policy=policy, groups=groups, agreement=agreement)
        await fleet.__aenter__()
        fleets.append(fleet)
    journal.clear()
    return fleets


def journal_of(fleets: Sequence[Fleet]) -> Journal:
    return fleets[0].engines[0].adapter.journal


async def on_all(fleets: Sequence[Fleet], verb: Callable[[Fleet], Awaitable[Any]]) -> list[Any]:
    """What became of a verb that all ranks call at once: what it returned or raised."""
    return await asyncio.gather(*(verb(fleet) for fleet in fleets), return_exceptions=True)


async def offload(fleet: Fleet) -> Any:
    return await fleet.offload(weights=V1, deadline_s=LIMIT_S)


async def onload(fleet: Fleet) -> Any:
    return await fleet.onload(deadline_s=LIMIT_S)


def states_of(fleets: Sequence[Fleet]) -> list[State]:
    return [engine.state for fleet in fleets for engine in fleet]


def causes(outcome: Any) -> list[Exception]:
    """What a verb failed for."""
    assert isinstance(outcome, FleetError), outcome
    return list(outcome.exceptions)
