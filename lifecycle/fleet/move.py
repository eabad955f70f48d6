"""Moves: several engines through the same phases, with a barrier after each, and a way back where some fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ..core.commands import Command, Drain, Release, Resume, UpdateWeights
from ..core.errors import EngineBusy, FleetError, GuardRefused, InvalidTransition, LifecycleError, OperationFailed
from ..core.ports import Router
from ..core.sources import Pushed, Source
from ..core.states import UNCLAIMED, State
from ..core.transition import Transition
from ..core.verdicts import holds
from ..engine.collective import Collective
from ..engine.engine import Engine
from ..rules.guards import Guard
from ..rules.machine import refusals
from ..rules.planner import OFFLOAD, ONLOAD, Goal, Standing, next_command, route
from ..rules.table import allowed, row
from .routing import Routing

#: What an engine should serve: its source and its wanted version.
Expected = tuple[Source | None, str | None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one engine in one phase."""

    engine: Engine
    transition: Transition | None = None
    error: Exception | None = None


def standing(engine: Engine) -> Standing:
    """The engine as the planner sees it."""
    return Standing(engine.state, engine.facts, engine.capabilities, engine.weights_refusal() is None)


@contextmanager
def claimed(engines: Sequence[Engine], what: str) -> Iterator[None]:
    """The engines belong to this move; EngineBusy names one that another has, and then none is claimed."""
    for engine in engines:
        holder = engine.busy or engine.in_move
        if holder is not None:
            raise EngineBusy(holder, engine=engine.name, command=what, state=engine.state)
    for engine in engines:
        engine.in_move = what
    try:
        yield
    finally:
        for engine in engines:
            engine.in_move = None


async def phase(commands: Sequence[tuple[Engine, Command]], deadline_s: float | None = None) -> list[Outcome]:
    """Every command has ended, all having run at once; results stand in the order given. A cancellation reaches all.

    Updates from the same push take part in one collective.
    """
    collectives = _collectives(commands)

    async def one(engine: Engine, command: Command) -> Outcome:
        collective = collectives.get(id(command.source)) if isinstance(command, UpdateWeights) else None
        try:
            done = await engine.execute(command, deadline_s=deadline_s, for_move=True, collective=collective)
            return Outcome(engine, done)
        except Exception as error:
            if collective is not None:
                collective.fail(error, who=engine.name)  # also where it was refused before it arrived
            return Outcome(engine, error=error)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(engine, command)) for engine, command in commands]
    return [task.result() for task in tasks]


def preflight(engines: Sequence[Engine], goals: Mapping[str, Goal]) -> None:
    """Every static guard of every route passed; FleetError names all that refused, and no engine was touched."""
    refusals_ = [_refusal(engine, goals[engine.name]) for engine in engines]
    refused = [error for error in refusals_ if error is not None]
    if refused:
        raise FleetError.of("refused before anything was sent", refused)


def check_static(engines: Sequence[Engine], command: Command) -> None:
    """The static guards of this command passed on every engine; FleetError names those that refuse."""
    refused: list[Exception] = []
    for engine in engines:
        reasons = refusals(_static_guards(command, engine.state), engine.context(command))
        if reasons:
            refused.append(GuardRefused(reasons, engine=engine.name, command=command.name, state=engine.state))
    if refused:
        raise FleetError.of("refused before anything was sent", refused)


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
    return GuardRefused(
        {"memory_returned": f"{why}; bring it back first (onload), or leave it out (engines=...)"},
        engine=engine.name,
        command="a move to released",
        state=engine.state,
    )


def declared(engine: Engine, named: Source | None) -> Source | None:
    """What an engine that is to be released will come back with: what is named, else what is known to bring it back."""
    return named or (engine.source if engine.state is State.RELEASED else engine.fallback)


def redeclare(engine: Engine, goal: Goal) -> None:
    """An engine that was released before the move comes back with what the move names, as the others do."""
    if goal.weights in (None, engine.source):
        return
    before = expected(engine)
    engine.expect(goal.weights)
    try:
        engine.keep()
    except Exception as unkept:
        engine.source, engine.wanted = before
        reasons = {"memory": f"what is known could not be kept ({unkept}); mend that, or connect again"}
        raise GuardRefused(reasons, engine=engine.name, command="offload", state=engine.state) from unkept


def expected(engine: Engine) -> Expected:
    """What the engine should serve as things are."""
    return engine.source, engine.wanted


def rewind(engine: Engine, source: Source | None, wanted: str | None) -> None:
    """The engine should serve what it did before: as it is where that is still valid, else the last good source.

    Where there is neither, what was declared for the window has to do.
    """
    declared = engine.source
    engine.source, engine.wanted = source, wanted
    if engine.weights_refusal() is None:
        return
    again = engine.last_good or declared
    if again is not None:
        engine.expect(again)


def _refusal(engine: Engine, goal: Goal) -> LifecycleError | None:
    if engine.state in UNCLAIMED:
        hint = "; recover() looks where it is, or leave it out (engines=...)"
        return _no_way(engine, f"a move to {goal.state}", hint)
    there = goal.state is engine.state is State.RELEASED
    lacking = not_released(engine, goal) if there else None
    if lacking is not None:
        return lacking
    route_on = list(route(standing(engine), goal))
    if there and goal.weights is not None:  # it is only asked whether these weights can come back
        route_on = [(replace(standing(engine), state=State.DRAINED), Release(goal.tags, goal.weights))]
    reasons: dict[str, str] = {}
    for now, command in route_on:
        reasons |= refusals(_static_guards(command, now.state), engine.context(command, facts=now.facts))
    if not reasons:
        return None
    return GuardRefused(reasons, engine=engine.name, command=f"a move to {goal.state}", state=engine.state)


def _static_guards(command: Command, state: State) -> tuple[Guard, ...]:
    operation = row(command.name, state)
    return tuple(guard for guard in operation.guards if guard.static) if operation else ()


class Move:
    """One offload or onload of some engines. `waves` orders the drain: each wave is idle before the next is asked."""

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        router: Router | None = None,
        waves: Callable[[Sequence[Engine]], list[list[Engine]]] | None = None,
        deadline_s: float | None = None,
        restore: bool = True,
    ) -> None:
        self.engines = list(engines)
        self._routing = Routing(router)
        self._waves = waves or (lambda engines: [list(engines)])
        self._deadline_s = deadline_s
        self._restore = restore

    async def offload(self, goals: Mapping[str, Goal]) -> list[Transition]:
        """Every engine is released, proved; the results of the releases, in the engines' order.

        Raises FleetError; with `restore` the engines that did not fail serve again by then.
        """
        preflight(self.engines, goals)
        before = {engine.name: expected(engine) for engine in self.engines}
        await self._routing.close(self.engines)
        done: list[Outcome] = []
        for kind in OFFLOAD:
            done = await self._phase(kind, self.engines, goals)
            failed = [outcome for outcome in done if outcome.error is not None] or self._astray(kind, goals)
            if failed:
                more = await self._back(failed, before) if self._restore else []
                raise _fleet_error(failed, done, more)
        for engine in self.engines:
            redeclare(engine, goals[engine.name])
        return [outcome.transition for outcome in done if outcome.transition is not None]

    async def onload(self) -> list[Transition]:
        """Every engine serves, and its router sends to it again; the results of the resumes, in the engines' order.

        An engine that fails on the way is released again where it can be, and the others go on.
        """
        active = list(self.engines)
        failed: list[Outcome] = []
        done: list[Outcome] = []
        for kind in ONLOAD:
            outcomes = await self._phase(kind, active, self._home())
            done = [outcome for outcome in done + outcomes if outcome.error is None]
            lost = [outcome for outcome in outcomes if outcome.error is not None]
            if lost and kind is not Resume and self._restore:
                await self._release_again(lost)
            failed += lost
            active = [engine for engine in active if engine not in {outcome.engine for outcome in lost}]
        failed += [Outcome(engine, error=_elsewhere(engine)) for engine in active if engine.state is not State.SERVING]
        problems = await self._reopen([engine for engine in active if engine.state is State.SERVING])
        if failed or problems:
            raise _fleet_error(failed, done, problems)
        resumed = [outcome for outcome in done if outcome.transition and outcome.transition.command == Resume.name]
        return [outcome.transition for outcome in resumed if outcome.transition is not None]

    # phases

    async def _phase(self, kind: type[Command], engines: Sequence[Engine], goals: Mapping[str, Goal]) -> list[Outcome]:
        if kind is Drain:
            outcomes: list[Outcome] = []
            for wave in self._waves(engines):
                outcomes += await self._at_once(kind, wave, goals)
                if any(outcome.error for outcome in outcomes):
                    return outcomes
            return sorted(outcomes, key=lambda outcome: self.engines.index(outcome.engine))
        return await self._at_once(kind, engines, goals)

    async def _at_once(
        self, kind: type[Command], engines: Sequence[Engine], goals: Mapping[str, Goal]
    ) -> list[Outcome]:
        planned = [(engine, next_command(standing(engine), goals[engine.name])) for engine in engines]
        commands = [(engine, command) for engine, command in planned if isinstance(command, kind)]
        return await phase(commands, self._deadline_s)

    async def _reopen(self, engines: Sequence[Engine]) -> list[Exception]:
        """The router sends to these engines again; what it raised instead, beside what else went wrong."""
        try:
            await self._routing.open(engines)
        except Exception as error:
            return [error]
        return []

    def _astray(self, kind: type[Command], goals: Mapping[str, Goal]) -> list[Outcome]:
        """The engines that somebody else moved meanwhile: the phases to come would pass them by."""
        to_come = OFFLOAD[OFFLOAD.index(kind) + 1 :]
        astray = []
        for engine in self.engines:
            goal = goals[engine.name]
            if engine.state is State.RELEASED:
                refusal = not_released(engine, goal)
                if refusal is not None:
                    astray.append(Outcome(engine, error=refusal))
            elif not isinstance(next_command(standing(engine), goal), to_come):
                astray.append(Outcome(engine, error=_elsewhere(engine)))
        return astray

    def _home(self) -> dict[str, Goal]:
        return {engine.name: Goal(State.SERVING, weights=engine.source) for engine in self.engines}

    # when some fail

    async def _back(self, failed: Sequence[Outcome], before: Mapping[str, Expected]) -> list[Exception]:
        """All that can serve serve again: a refused or drained one is resumed, a released one restored.

        One whose release failed stays where it settled: its memory is in question. The weights are those of before the
        move where they are still there, else the last good ones: the new ones belong to a step that never began.
        """
        for engine in self.engines:
            rewind(engine, *before[engine.name])
        lost = {outcome.engine.name for outcome in failed}
        able = [engine for engine in self.engines if engine.name not in lost or engine.state is not State.RELEASED]
        able = [engine for engine in able if engine.state not in (State.FAILED, State.GONE)]
        stuck = [engine for engine in able if needs_the_trainer(engine)]
        move = Move(
            [engine for engine in able if engine not in stuck], router=self._routing.router, deadline_s=self._deadline_s
        )
        problems: list[Exception] = [only_the_trainer(engine) for engine in stuck]
        try:
            await move.onload()
        except FleetError as error:
            problems += error.exceptions
        return problems

    async def _release_again(self, lost: Sequence[Outcome]) -> None:
        """What they may still hold is given back; where that fails too it keeps its devices, and its state says so."""
        able = [outcome for outcome in lost if "release" in allowed(outcome.engine.state)]
        commands = [(outcome.engine, Release(None, outcome.engine.source)) for outcome in able]
        for outcome, again in zip(able, await phase(commands, self._deadline_s), strict=True):
            if isinstance(outcome.error, OperationFailed):
                note = ", where it was released again" if again.error is None else f"; released again: {again.error}"
                outcome.error.settle(outcome.engine.state, note)


def _collectives(commands: Sequence[tuple[Engine, Command]]) -> dict[int, Collective]:
    """A collective for each push among the commands, by the identity of its source."""
    parties: dict[int, tuple[Pushed, list[Engine]]] = {}
    for engine, command in commands:
        if isinstance(command, UpdateWeights) and isinstance(command.source, Pushed):
            parties.setdefault(id(command.source), (command.source, []))[1].append(engine)
    return {key: Collective(source, engines) for key, (source, engines) in parties.items()}


def _elsewhere(engine: Engine) -> LifecycleError:
    return _no_way(engine, "a move", "; the move cannot go on with it from here; recover() looks where it is")


def needs_the_trainer(engine: Engine) -> bool:
    """Whether nothing but a push brings its weights back: nobody asks for one whose step has failed."""
    return isinstance(engine.source, Pushed) and engine.weights_refusal() is not None


def only_the_trainer(engine: Engine) -> LifecycleError:
    """Why an engine is left where it is on the way home."""
    hint = "; it stays where it is: its weights come by a push, and only the trainer can make that"
    return _no_way(engine, "onload", hint)


def _no_way(engine: Engine, command: str, hint: str) -> LifecycleError:
    here = allowed(engine.state)
    return InvalidTransition(engine=engine.name, command=command, state=engine.state, allowed=here, hint=hint)


def _fleet_error(failed: Sequence[Outcome], done: Sequence[Outcome], more: Sequence[Exception]) -> FleetError:
    errors = [outcome.error for outcome in failed if outcome.error is not None]
    lost = {outcome.engine.name for outcome in failed}
    succeeded = {outcome.engine.name: outcome.transition for outcome in done if outcome.transition is not None}
    kept = [transition for name, transition in succeeded.items() if name not in lost]
    return FleetError.of(f"{len(lost)} of {len(lost) + len(kept)} engines", [*errors, *more], kept)
