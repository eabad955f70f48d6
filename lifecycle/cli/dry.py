"""What a command would send, without sending it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..core.commands import Command, UpdateWeights
from ..core.sources import Kept, version_of
from ..engine.engine import Engine
from ..rules.knowledge import expected_after
from ..rules.planner import Goal, PlannerView, route
from ..rules.table import OPERATIONS, row


def planned(engine: Engine, commands: Iterable[Command]) -> list[str]:
    """A line for each call, with the facts as they would be by then if all went well."""
    facts, lines = engine.facts, []
    for command in commands:
        calls = engine.adapter.plan(command, facts)
        facts = expected_after(facts, command, calls)
        told = ", ".join(str(call) for call in calls) or "nothing is sent; only proofs are asked for"
        lines.append(f"{engine.name}  {command}: {told}")
    return lines


def towards(engine: Engine, goals: Sequence[Goal]) -> list[Command]:
    """The commands that lead from where the engine is to these goals, one after the other, if all goes well."""
    now, commands = engine.view(), []
    for goal in goals:
        commands += [command for _, command in route(now, goal)]
        now = PlannerView(goal.state, now.facts, now.capabilities, isinstance(goal.weights, Kept))
    return commands


def arrived(engine: Engine, commands: Sequence[Command]) -> bool:
    """Whether the engine is where these commands lead already: asking again does nothing and is no error."""
    if not commands:
        return True
    if any(isinstance(command, UpdateWeights) and not _holds(engine, command) for command in commands):
        return False
    last = commands[-1].name
    return row(commands[0].name, engine.state) is None and any(
        each.command == last and each.dest is engine.state for each in OPERATIONS
    )


def _holds(engine: Engine, command: UpdateWeights) -> bool:
    return engine.desired.version == version_of(command.source) and engine.weights_refusal() is None
