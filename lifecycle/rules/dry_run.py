"""A dry run: what would be sent to an engine, and what would be known by then, if all went well. Pure.

The planner says which commands lead to a goal and the adapter which calls a command makes; nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..core.calls import Call
from ..core.commands import Command
from ..core.facts import Facts
from ..core.sources import Kept
from .knowledge import expected_after
from .planner import Goal, PlannerView, route

#: What is asked of an engine: one command, or a goal that takes as many commands as the planner says.
Step = Command | Goal


def commands_of(now: PlannerView, steps: Iterable[Step]) -> list[Command]:
    """The commands of these steps, in order. Each goal is planned from where the goal before it leads."""
    commands: list[Command] = []
    for step in steps:
        if isinstance(step, Command):
            commands.append(step)
        else:
            commands += [command for _, command in route(now, step)]
            now = PlannerView(step.state, now.facts, now.capabilities, isinstance(step.weights, Kept))
    return commands


def dry_run(
    facts: Facts, commands: Iterable[Command], plan: Callable[[Command, Facts], tuple[Call, ...]]
) -> list[tuple[Command, tuple[Call, ...]]]:
    """Each command with its calls, as the adapter's `plan` makes them once the commands before it have succeeded."""
    planned = []
    for command in commands:
        calls = plan(command, facts)
        planned.append((command, calls))
        facts = expected_after(facts, command, calls)
    return planned
