"""What can be refused before anything is sent: the static guards of every route, asked of every engine. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..core.commands import Command, Release
from ..core.errors import FleetError, GuardRefused, LifecycleError
from ..core.states import UNCLAIMED, State
from ..core.verdicts import holds
from ..engine.engine import Engine
from ..rules.guards import Guard
from ..rules.machine import refusals
from ..rules.planner import Goal, route
from ..rules.table import allowed, not_allowed, row

_REFUSED = "refused before anything was sent"


def preflight(engines: Sequence[Engine], goals: Mapping[str, Goal]) -> None:
    """Every static guard of every route passed; FleetError names all that refused, and nothing was sent."""
    _raise_all([_refusal(engine, goals[engine.name]) for engine in engines])


def check_static(engines: Sequence[Engine], command: Command) -> None:
    """The static guards of this command passed on every engine; FleetError names those that refuse."""
    found: list[LifecycleError | None] = []
    for engine in engines:
        reasons = refusals(_static_guards(command, engine.state), engine.context(command))
        found.append(GuardRefused(reasons, **engine.about(command.name)) if reasons else None)
    _raise_all(found)


def check_allowed(engines: Sequence[Engine], command: str) -> None:
    """The table has a row for this command where each engine is: no participant is released before all are drained."""
    _raise_all(
        [None if command in allowed(engine.state) else not_allowed(**engine.about(command)) for engine in engines]
    )


def not_released(engine: Engine, goal: Goal) -> LifecycleError | None:
    """Why an engine that is released is not so as the goal wants it; None where it is.

    That it is released does not say that its memory came back: its release may have been acknowledged and refuted.
    """
    tags = frozenset(spec.name for spec in engine.capabilities.tags) if goal.tags is None else goal.tags
    mapped = sorted(tags - engine.facts.unmapped())
    condition = engine.conditions.get("memory_returned")
    least = engine.policy.least_grade("memory_returned")
    if mapped:
        why = f"it is released, and {', '.join(mapped)} are not among what was given back"
    elif condition is None or not holds(condition.verdict, least):
        why = f"it is released, and memory_returned is {condition.verdict if condition else 'not known'}"
    else:
        return None
    reason = f"{why}; bring it back first (onload), or leave it out (engines=...)"
    return GuardRefused({"memory_returned": reason}, **engine.about("a move to released"))


def _refusal(engine: Engine, goal: Goal) -> LifecycleError | None:
    move = f"a move to {goal.state}"
    if engine.state in UNCLAIMED:
        hint = "; recover() looks where it is, or leave it out (engines=...)"
        return not_allowed(**engine.about(move), hint=hint)
    there = goal.state is engine.state is State.RELEASED
    lacking = not_released(engine, goal) if there else None
    if lacking is not None:
        return lacking
    steps = list(route(engine.view(), goal))
    if there and goal.weights is not None:  # it is only asked whether these weights can come back
        steps = [(replace(engine.view(), state=State.DRAINED), Release(goal.tags, goal.weights))]
    reasons: dict[str, str] = {}
    for now, command in steps:
        reasons |= refusals(_static_guards(command, now.state), engine.context(command, facts=now.facts))
    return GuardRefused(reasons, **engine.about(move)) if reasons else None


def _static_guards(command: Command, state: State) -> tuple[Guard, ...]:
    operation = row(command.name, state)
    return tuple(guard for guard in operation.guards if guard.static) if operation else ()


def _raise_all(found: Sequence[LifecycleError | None]) -> None:
    refused = [error for error in found if error is not None]
    if refused:
        raise FleetError.of(_REFUSED, refused)
