"""One command to each of several engines at once, and the course of a move: who takes part still, and who failed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from ..core.commands import Command, Release, UpdateWeights
from ..core.deadline import Deadline, Limit, seconds
from ..core.errors import FleetError, GuardRefused, LifecycleError, OperationFailed
from ..core.sources import Pushed
from ..core.transition import Transition
from ..engine.collective import Collective, CollectiveFailed
from ..engine.engine import Engine
from ..rules.planner import Goal, next_command
from ..rules.table import allowed

#: So many commands begin in one turn of the event loop. What the first of a large fleet send is on its way before the
#: last have begun, and those that have ended take no room while the others begin.
PER_TURN = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one engine in one phase: a transition, an error, or neither where another one kept it from it."""

    engine: Engine
    command: Command | None = None
    transition: Transition | None = None
    error: Exception | None = None


@dataclass(slots=True)
class Course:
    """How a move went so far: who takes part still, who failed, and the last transition of each engine, by its name."""

    active: list[Engine]
    done: dict[str, Transition] = field(default_factory=dict)
    failed: list[Outcome] = field(default_factory=list)

    def ended(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Takes in one phase; returns those that failed in it, which take part no more."""
        lost = [outcome for outcome in outcomes if outcome.error is not None]
        self.done |= {each.engine.name: each.transition for each in outcomes if each.transition is not None}
        self.failed += lost
        gone = {outcome.engine.name for outcome in lost}
        self.active = [engine for engine in self.active if engine.name not in gone]
        return lost

    @property
    def errors(self) -> list[Exception]:
        """What those that failed raised."""
        return [outcome.error for outcome in self.failed if outcome.error is not None]

    def goes_on_without(self, names: Collection[str]) -> None:
        """The engines of these names, which failed, are none of those that the move fails for."""
        self.failed = [outcome for outcome in self.failed if outcome.engine.name not in names]

    def error(self, more: Sequence[Exception] = ()) -> FleetError:
        """Names all that failed, and what else went wrong; `succeeded` are the last transitions of the others."""
        lost = {outcome.engine.name for outcome in self.failed}
        succeeded = [transition for name, transition in self.done.items() if name not in lost]
        what = f"{len(lost)} of {len(lost) + len(succeeded)} engines" if lost else "no engine failed"
        return FleetError.of(what, [*self.errors, *more], succeeded)


def too_late(commands: Sequence[tuple[Engine, Command]], limit: Limit) -> list[Outcome]:
    """What becomes of commands that are not given, since the deadline of their move has passed; else of none."""
    if not isinstance(limit, Deadline):
        return []
    late = [(engine, command, engine.too_late(command.name, limit)) for engine, command in commands]
    return [Outcome(each, command, error=each.advised(error, command)) for each, command, error in late if error]


def check_in_time(engines: Sequence[Engine], what: str, deadline: Deadline, done: Sequence[Transition] = ()) -> None:
    """Something is left of the deadline for this; FleetError names the engines that are sent nothing any more."""
    late = [each.advised(error) for each in engines if (error := each.too_late(what, deadline))]
    if late:
        raise FleetError.of(f"{len(late)} of {len(late) + len(done)} engines", late, done)


async def at_once(
    commands: Sequence[tuple[Engine, Command]],
    deadline_s: float | None = None,
    *,
    within: Limit = None,
    each_by_itself: bool = False,
) -> list[Outcome]:
    """Every command has ended, all having run at once; results stand in the order given. A cancellation reaches all.

    None is given where the deadline that is given as `within` has passed. Updates from the same push take part in one
    collective, and so do releases, unless each goes `each_by_itself`: what keeps one keeps all from it.
    """
    late = too_late(commands, within)
    if late:
        return late
    collectives = {} if each_by_itself else _collectives(commands)
    Engine.say_answered([engine for engine, _ in commands])

    outcomes: list[Outcome | None] = [None] * len(commands)

    async def give(number: int, engine: Engine, command: Command) -> None:
        collective = collectives.get(_together(command))
        try:
            done = await engine.execute(command, deadline_s=deadline_s, for_move=True, collective=collective)
            outcomes[number] = Outcome(engine, command, done)
        except Exception as error:
            if collective is not None:
                collective.fail(error, who=engine.name)  # also where it was refused before it arrived
            kept_by_another = isinstance(error, GuardRefused) and isinstance(error.__cause__, CollectiveFailed)
            outcomes[number] = Outcome(engine, command, error=None if kept_by_another else error)

    async with asyncio.TaskGroup() as group:
        for number, (engine, command) in enumerate(commands):
            if number and not number % PER_TURN:
                await asyncio.sleep(0)
            group.create_task(give(number, engine, command))
    if None in outcomes:  # a command was cancelled from within: by whoever closed its adapter, say
        raise asyncio.CancelledError
    return [outcome for outcome in outcomes if outcome is not None]


async def at_their_own_pace(
    engines: Sequence[Engine],
    kinds: Sequence[type[Command]],
    goals: Mapping[str, Goal],
    deadline_s: float | None = None,
    *,
    within: Limit = None,
) -> list[Outcome]:
    """Every engine was given its commands of these kinds, one after another, without waiting for the other engines."""

    async def one(engine: Engine) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for kind in kinds:
            command = next_command(engine.view(), goals[engine.name])
            if isinstance(command, kind):
                left_s = seconds(within) if isinstance(within, Deadline) else deadline_s
                outcomes += await at_once([(engine, command)], left_s, within=within)
            if outcomes and outcomes[-1].error is not None:
                break
        return outcomes

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(engine)) for engine in engines]
    return [outcome for task in tasks for outcome in task.result()]


async def release_again(lost: Sequence[Outcome], deadline_s: float | None) -> None:
    """What they may still hold is given back; where that fails too it keeps its devices, and its state says so."""
    able = [outcome for outcome in lost if Release.name in allowed(outcome.engine.state)]
    commands = [(outcome.engine, Release(None, outcome.engine.desired.source)) for outcome in able]
    released = await at_once(commands, deadline_s, each_by_itself=True)
    for outcome, again in zip(able, released, strict=True):
        if isinstance(outcome.error, OperationFailed):
            note = ", where it was released again" if again.error is None else f"; released again: {again.error}"
            outcome.error.settle(outcome.engine.state, note)
        if isinstance(outcome.error, LifecycleError):
            outcome.engine.advised(outcome.error, outcome.command)


def _together(command: Command) -> Hashable:
    """Equal for commands that are carried out together or not at all; None where one is by itself."""
    if isinstance(command, UpdateWeights) and isinstance(command.source, Pushed):
        return id(command.source)
    return Release.name if isinstance(command, Release) else None


def _collectives(commands: Sequence[tuple[Engine, Command]]) -> dict[Hashable, Collective]:
    """A collective for each push among the commands, by the identity of its source, and one for all releases."""
    parties: dict[Hashable, tuple[Pushed | None, list[Engine]]] = {}
    for engine, command in commands:
        key, source = _together(command), command.source if isinstance(command, UpdateWeights) else None
        if key is not None:
            pushed = source if isinstance(source, Pushed) else None
            parties.setdefault(key, (pushed, []))[1].append(engine)
    return {key: Collective(source, engines) for key, (source, engines) in parties.items()}
