"""A step of several engines: one command to each, all at once, which is a move of one phase in their journals."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.commands import Command
from ..core.errors import FleetError
from ..core.transition import Transition
from ..engine.engine import Engine
from .course import at_once
from .journaling import step_noted
from .ranks import Ranks, plan_of_commands


async def together(
    commands: Sequence[tuple[Engine, Command]], deadline_s: float | None, ranks: Ranks
) -> list[Transition]:
    """Every command has ended; FleetError names those that failed. Nothing was sent unless all ranks are ready."""
    await all_ready(commands, deadline_s, ranks)
    with step_noted(commands) as outcomes:
        outcomes += await at_once(commands, ranks.work_s(deadline_s))
    failed = [outcome.error for outcome in outcomes if outcome.error is not None]
    done = [outcome.transition for outcome in outcomes if outcome.transition is not None]
    if failed:
        raise FleetError.of(f"{len(failed)} of {len(outcomes)} engines", failed, done)
    return done


async def all_ready(commands: Sequence[tuple[Engine, Command]], deadline_s: float | None, ranks: Ranks) -> None:
    """All ranks are ready for this step, where that was not asked yet; the time of the step begins then."""
    if commands and not ranks.begun:
        name, engines = commands[0][1].name, [engine for engine, _ in commands]
        ranks.phase_begins(name, engines, deadline_s)
        await ranks.begin(plan_of_commands(commands))
        ranks.phase_begins(name, engines, deadline_s)
