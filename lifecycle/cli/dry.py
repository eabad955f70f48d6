"""What a command would send, without sending it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..core.commands import Command, Drain, UpdateWeights
from ..core.facts import Fact, Grade
from ..core.sources import Kept, version_of
from ..engine.engine import Engine
from ..fleet.move import standing
from ..rules.planner import Goal, Standing, route
from ..rules.table import OPERATIONS, row


def planned(engine: Engine, commands: Iterable[Command]) -> list[str]:
    """A line for each call, with the facts as they would be by then if all went well."""
    facts, lines = engine.facts, []
    for command in commands:
        calls = engine.adapter.plan(command, facts)
        for call in calls:
            facts = facts.learn(call.effect, Grade.ACKNOWLEDGED)
        if isinstance(command, Drain):
            facts = facts.learn({Fact.RUNNING: 0}, Grade.REPORTED)
        told = ", ".join(str(call) for call in calls) or "nothing is sent; only proofs are asked for"
        lines.append(f"{engine.name}  {command}: {told}")
    return lines


def towards(engine: Engine, goals: Sequence[Goal]) -> list[Command]:
    """The commands that lead from where the engine is to these goals, one after the other, if all goes well."""
    now, commands = standing(engine), []
    for goal in goals:
        commands += [command for _, command in route(now, goal)]
        now = Standing(goal.state, now.facts, now.capabilities, isinstance(goal.weights, Kept))
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
    return engine.wanted == version_of(command.source) and engine.weights_refusal() is None
