"""What a verb asks of the engines, stated once. A dry run and the real run both follow from it.

An action is a list of steps: commands, or goals for the planner. A dry run expands them for each engine and asks its
adapter for the calls. The real run gives each step to the fleet, which has one method for each command and each move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from ..core.sources import FromDisk, version_of
from ..core.states import State
from ..core.transition import Transition
from ..engine.engine import Engine
from ..fleet.claims import verify_all
from ..fleet.fleet import Fleet
from ..rules.desired import source_after_release, source_to_serve
from ..rules.dry_run import Step, commands_of
from ..rules.planner import Goal
from ..rules.table import OPERATIONS, row
from .parity import Parity


@dataclass(frozen=True, slots=True)
class Action:
    """The steps of a verb, in order.

    The goals `released, serving` are one cycle, which is run `times` times. `parity` compares answers around them all.
    """

    steps: tuple[Step, ...]
    times: int = 1
    parity: Parity | None = None

    @property
    def asks_all(self) -> bool:
        """Whether it is also asked of engines that are there: a move finds nothing to do for them, or refuses."""
        return any(isinstance(step, Goal | Release) for step in self.steps)

    def commands(self, engine: Engine) -> list[Command]:
        """The commands that this action comes to for the engine, from where it is, if all goes well."""
        named = next((step.weights for step in self.steps[:1] if isinstance(step, Goal)), None)
        onload = self.steps[0] == Goal(State.SERVING, weights=named)
        return commands_of(engine.view(named if onload else None), self._steps_of(engine))

    async def run(self, fleet: Fleet, engines: Sequence[Engine], deadline_s: float | None) -> list[Transition]:
        """Every step has been carried out on these engines; the transitions of the last one."""
        match self.steps:
            case [Goal(state=State.RELEASED) as goal, Goal(state=State.SERVING)]:
                return await self._cycles(fleet, goal, engines, deadline_s)
        done: list[Transition] = []
        for step in self.steps:
            done = await _carry_out(step, fleet, engines, deadline_s)
        return done

    async def _cycles(
        self, fleet: Fleet, goal: Goal, engines: Sequence[Engine], deadline_s: float | None
    ) -> list[Transition]:
        """The releases of every cycle. With `parity`, the answers after the last are compared with those before."""
        done: list[Transition] = []
        if self.parity is not None:
            await self.parity.record_baseline(engines)
        for _ in range(self.times):
            window = fleet.offloaded(
                goal.tags, weights=goal.weights, mode=goal.mode, engines=engines, deadline_s=deadline_s
            )
            async with window as released:
                done += released
        if self.parity is not None:
            await self.parity.compare(engines)
        return done

    def _steps_of(self, engine: Engine) -> list[Step]:
        """The steps, with the source of the weights that the fleet fills in for this engine where none is named."""
        steps: list[Step] = []
        source = source_to_serve(engine.record, engine.capabilities)
        for step in self.steps:
            match step:
                case Release():
                    step = replace(step, weights=step.weights or engine.desired.rollback_source)
                case Goal(state=State.RELEASED):
                    source = source_after_release(engine.record, step.weights)
                    step = replace(step, weights=source)
                case Goal():
                    step = replace(step, weights=step.weights or source)
            steps.append(step)
        return steps


def arrived(engine: Engine, commands: Sequence[Command]) -> bool:
    """Whether the engine is where these commands lead: giving them again does nothing and is no error."""
    if not commands:
        return True
    updates = [command for command in commands if isinstance(command, UpdateWeights)]
    if any(command.force or not _holds(engine, command) for command in updates):
        return False
    if len(updates) == len(commands):
        return True
    last = commands[-1].name
    return row(commands[0].name, engine.state) is None and any(
        each.command == last and each.dest is engine.state for each in OPERATIONS
    )


def _holds(engine: Engine, command: UpdateWeights) -> bool:
    return engine.desired.version == version_of(command.source) and engine.weights_refusal() is None


async def _carry_out(step: Step, fleet: Fleet, engines: Sequence[Engine], deadline_s: float | None) -> list[Transition]:
    """The step has been carried out by the method that the fleet has for it.

    A command is not given to engines that are where it leads. They may be released without proof that their memory
    came back, though, so that a release verifies them, and asks for the move: it sends nothing there, or refuses.
    """
    if isinstance(step, Goal) and step.state is State.SERVING:
        return await fleet.onload(weights=step.weights, engines=engines, deadline_s=deadline_s)
    if isinstance(step, Goal):
        return await fleet.offload(
            step.tags, weights=step.weights, mode=step.mode, engines=engines, deadline_s=deadline_s
        )
    if isinstance(step, Release):
        await verify_all([engine for engine in engines if engine.state is State.RELEASED], deadline_s)
    there = [engine for engine in engines if arrived(engine, [step])]
    rest = [engine for engine in engines if engine not in there]
    match step:
        case Pause(mode=mode):
            return await fleet.pause(mode, engines=rest, deadline_s=deadline_s)
        case Drain():
            return await fleet.drain(engines=rest, deadline_s=deadline_s)
        case Release(tags=tags, weights=weights):
            await fleet.offload(tags, weights=weights, engines=there, deadline_s=deadline_s)
            return await fleet.release(tags, weights=weights, engines=rest, deadline_s=deadline_s)
        case RestoreWeights():
            return await fleet.restore_weights(engines=rest, deadline_s=deadline_s)
        case UpdateWeights(source=FromDisk() as source, force=force):
            return await fleet.update_weights(source, force=force, engines=rest, deadline_s=deadline_s)
        case RestoreKV():
            return await fleet.restore_kv(engines=rest, deadline_s=deadline_s)
        case Resume():
            return await fleet.resume(engines=rest, deadline_s=deadline_s)
    raise TypeError(f"no method of a fleet carries out {step}")
