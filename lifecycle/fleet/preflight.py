"""What can be refused before anything is sent: the static guards of every route, asked of every engine. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..core.commands import Command, Release, UpdateWeights
from ..core.deadline import Deadline, Limit
from ..core.errors import ConfigurationError, FleetError, GuardRefused, LifecycleError
from ..core.frozen import replace
from ..core.policy import positive
from ..core.sources import Kept, Pushed, Source
from ..core.states import UNCLAIMED, State
from ..engine.engine import Engine
from ..rules.desired import needs_trainer, source_to_serve
from ..rules.ensured import not_given_back
from ..rules.guards import Guard, unloadable
from ..rules.machine import refusals
from ..rules.planner import OFFLOAD, ONLOAD, Goal, next_command, route
from ..rules.table import allowed, row
from .course import Outcome

#: How the error begins that names the engines for which a move was refused.
REFUSED = "refused before anything was sent"


def preflight(engines: Sequence[Engine], goals: Mapping[str, Goal]) -> None:
    """Every static guard of every route passed; FleetError names all that refused, and nothing was sent."""
    _raise_all([_refusal(engine, goals[engine.name]) for engine in engines])


def check_static(engines: Sequence[Engine], command: Command) -> None:
    """The static guards of this command passed on every engine; FleetError names those that refuse."""
    found: list[LifecycleError | None] = []
    for engine in engines:
        reasons = refusals(_static_guards(command, engine.state), engine.context(command))
        found.append(engine.advised(GuardRefused(reasons, **engine.about(command.name)), command) if reasons else None)
    _raise_all(found)


def check_allowed(engines: Sequence[Engine], command: Callable[[Engine], Command]) -> None:
    """The table has a row for this command where each engine is: no participant is released before all are drained."""
    asked = [(engine, command(engine)) for engine in engines]
    _raise_all(
        [
            None if each.name in allowed(engine.state) else engine.advised(engine.not_allowed(each.name), each)
            for engine, each in asked
        ]
    )


#: What is named for each engine of a move, by its name; None: what it is to serve already, or can fall back to.
Sources = Mapping[str, Source | None]


def check_sources(engines: Sequence[Engine], weights: Sources) -> None:
    """Every engine can be given weights that are worth serving; FleetError names those that nothing brings any."""
    _raise_all([no_source(engine, weights[engine.name]) for engine in engines])


def check_overlap(engines: Sequence[Engine], weights: Sources, between: object) -> None:
    """The engines may restore at their own pace; ConfigurationError says what needs them to wait for each other."""
    if between is not None:
        raise ConfigurationError("overlap=True and between=: the step between needs the weights of all; leave out one")
    sources = [weights[each.name] or source_to_serve(each.record, each.capabilities) for each in engines]
    pushed = [engine.name for engine, source in zip(engines, sources, strict=True) if isinstance(source, Pushed)]
    if pushed:
        names = ", ".join(pushed)
        raise ConfigurationError(f"overlap=True, and the weights of {names} are pushed, to all at once; leave it out")


def check_deadline(deadline_s: Limit) -> None:
    """A deadline that is given is a finite number of seconds above 0; ConfigurationError says so."""
    if deadline_s is not None and not isinstance(deadline_s, Deadline):
        positive("deadline_s", deadline_s)


def no_source(engine: Engine, weights: Source | None = None) -> LifecycleError | None:
    """Why nothing that is known, or not `weights`, brings the engine weights that are worth serving."""
    if engine.state in UNCLAIMED or engine.view(weights).weights_are_valid:
        return None
    source = weights or source_to_serve(engine.record, engine.capabilities)
    name, reason = "source", ""
    if source is None or isinstance(source, Kept):
        kept = "" if source is None else ", and the engine has not kept them"
        reason = f"{engine.weights_refusal()}{kept}; name a source: weights=, --weights on the command line"
    elif engine.state is State.SERVING:
        name, reason = "serving", "it serves other weights, and an onload loads nothing into an engine that serves"
    else:
        reason = unloadable(engine.context(UpdateWeights(source)), source) or ""
    if not reason:
        return None
    asked = Goal(State.SERVING, weights=source)
    return engine.advised(GuardRefused({name: reason}, **engine.about("onload")), asked)


def stays_behind(engine: Engine) -> LifecycleError | None:
    """Why an onload that nobody asked for leaves the engine where it is; None where it takes it along."""
    if needs_trainer(engine.record, engine.capabilities):
        hint = "; its weights come by a push, and only the trainer can make that"
        return engine.advised(engine.not_allowed("onload", hint))
    return no_source(engine)


def not_released(engine: Engine, goal: Goal) -> LifecycleError | None:
    """Why an engine that is released is not so as the goal wants it; None where it is."""
    why = not_given_back(engine.record, engine.capabilities, engine.policy, goal)
    if why is None:
        return None
    reason = f"{why}; bring it back first (onload), or leave it out (engines=...)"
    return engine.advised(GuardRefused({"memory_returned": reason}, **engine.about("a move to released")), goal)


def not_there(engines: Sequence[Engine], to: State, weights: Source | None) -> list[Engine]:
    """Those that are not in this state; FleetError names those that are not brought there from where they are."""
    away = [engine for engine in engines if engine.missing(to, weights) is not None]
    refused = [(engine, engine.not_brought(to)) for engine in away]
    _raise_all([None if error is None else engine.advised(error) for engine, error in refused])
    return away


def lost_before(engine: Engine, goal: Goal) -> LifecycleError:
    """The refusal of a move with an engine that was failed or gone before."""
    hint = "; or leave it out (engines=...)"
    return engine.advised(engine.not_allowed(f"a move to {goal.state}", hint), goal)


def unexpected_state(engine: Engine) -> LifecycleError:
    """The refusal to go on with an engine that somebody else moved meanwhile."""
    return engine.advised(engine.not_allowed("a move", "; the move cannot go on with it from here"))


def moved_elsewhere(engines: Sequence[Engine], kind: type[Command], home: Mapping[str, Goal]) -> list[Outcome]:
    """Those that are not where this phase of an onload leads, though it did not fail: somebody else moved them."""
    to_come = ONLOAD[ONLOAD.index(kind) + 1 :]
    short = [each for each in engines if each.state is not State.SERVING]
    short = [each for each in short if not isinstance(next_command(each.view(), home[each.name]), to_come)]
    return [Outcome(engine, error=unexpected_state(engine)) for engine in short]


def externally_modified(engines: Sequence[Engine], kind: type[Command], goals: Mapping[str, Goal]) -> list[Outcome]:
    """Those that somebody else moved since this phase of an offload: the phases to come would pass them by."""
    to_come = OFFLOAD[OFFLOAD.index(kind) + 1 :]
    found = []
    for engine in engines:
        goal = goals[engine.name]
        if engine.state is State.RELEASED:
            refusal = not_released(engine, goal)
            if refusal is not None:
                found.append(Outcome(engine, error=refusal))
        elif not isinstance(next_command(engine.view(), goal), to_come):
            found.append(Outcome(engine, error=unexpected_state(engine)))
    return found


def _refusal(engine: Engine, goal: Goal) -> LifecycleError | None:
    move = f"a move to {goal.state}"
    if engine.state in UNCLAIMED:
        return lost_before(engine, goal)
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
    return engine.advised(GuardRefused(reasons, **engine.about(move)), goal) if reasons else None


def _static_guards(command: Command, state: State) -> tuple[Guard, ...]:
    operation = row(command.name, state)
    return tuple(guard for guard in operation.guards if guard.static) if operation else ()


def _raise_all(found: Sequence[LifecycleError | None]) -> None:
    refused = [error for error in found if error is not None]
    if refused:
        raise FleetError.of(REFUSED, refused)
