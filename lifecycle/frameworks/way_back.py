"""The way back: engines of a verb that failed, or was given up, serve again as far as they can.

A move of the fleet does most of it. Two things are left: who gave the move up (Ctrl-C, a cancelled task) left the
engines where they were, and an engine whose release was refuted stays released, since its memory is in question.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from ..core.errors import FleetError
from ..core.states import State
from ..engine.engine import Engine
from ..fleet.fleet import Fleet
from ..fleet.preflight import stays_behind
from ..fleet.window import CANCELLED, restore_on_error


@asynccontextmanager
async def not_given_up(fleet: Fleet, engines: Sequence[Engine], deadline_s: float | None) -> AsyncIterator[None]:
    """A cancellation inside comes through once the engines serve again, with what they served before."""

    async def onload(some: Sequence[Engine]) -> None:
        await fleet.onload(engines=some, deadline_s=deadline_s)

    before = {engine.name: engine.desired for engine in engines}
    after = () if fleet.policy.on_failure == "hold" else CANCELLED
    async with restore_on_error(engines, onload, after=after, before=before, deadline_s=deadline_s):
        yield


@asynccontextmanager
async def serving_again(fleet: Fleet, engines: Sequence[Engine], deadline_s: float | None) -> AsyncIterator[None]:
    """As `not_given_up`; and an error comes through once the engines that stayed released serve again too.

    One whose weights come by a push alone stays, and a note on the error says so.
    """
    async with not_given_up(fleet, engines, deadline_s):
        try:
            yield
        except FleetError as error:
            if fleet.policy.on_failure == "restore":
                await _onload(fleet, [each for each in engines if each.state is State.RELEASED], error, deadline_s)
            raise


async def _onload(fleet: Fleet, engines: Sequence[Engine], error: FleetError, deadline_s: float | None) -> None:
    stuck = {engine.name: why for engine in engines if (why := stays_behind(engine)) is not None}
    able = [engine for engine in engines if engine.name not in stuck]
    for why in stuck.values():
        error.add_note(f"it stays released: {why}")
    try:
        if able:
            await fleet.onload(engines=able, deadline_s=deadline_s)
    except FleetError as also:
        error.add_note(f"not all serve again: {also}")
    else:
        if able:
            error.add_note(f"they serve again, and keep their devices: {', '.join(each.name for each in able)}")
