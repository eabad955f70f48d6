"""Finding out at once where several engines are, and bringing those that live to one state.

What a driver left in the middle is finished by another: it finds out where each engine is, and then moves those that
are in a state of the ring, each from where it was found. One that is gone, or of which a fact stays unknown, is left
out, and its reason says why. So is one that the move refuses, and what fails on the way fails for it alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Literal, Protocol, get_args

from ..core.advice import Recovery
from ..core.deadline import Deadline
from ..core.errors import ConfigurationError, FleetError, LifecycleError
from ..core.sources import Kept, Source
from ..core.states import UNCLAIMED, State
from ..engine.engine import Engine
from ..rules.desired import needs_trainer, source_to_serve
from .preflight import stays_behind

#: Where a recovery may bring engines.
RecoverTo = Literal["serving", "released"]


async def recovered(engines: Sequence[Engine], deadline_s: float) -> dict[str, Recovery]:
    """What was found of each engine, by name. Where one cannot be asked, its reason says why."""
    found = await asyncio.gather(*(_recovered(engine, deadline_s) for engine in engines))
    return {engine.name: each for engine, each in zip(engines, found, strict=True)}


class Moves(Protocol):
    """A move of some engines to where they are to be."""

    def __call__(
        self, *, weights: Source | None, engines: Sequence[Engine], deadline_s: float | None
    ) -> Awaitable[object]:
        """All of these are there, or it raises."""


async def brought(
    engines: Sequence[Engine],
    fleet: Sequence[Engine],
    where: RecoverTo,
    moves: Mapping[str, Moves],
    weights: Source | None,
    limit_s: float,
    deadline_s: float | None,
) -> dict[str, Recovery]:
    """Where each engine is once those that can have been moved to this state; why not, where one is not.

    One that cannot serve before the trainer has pushed is released, unless `weights` names others. Without those, an
    engine of which no version is known that it is to serve is to serve that of its `fleet`. `moves` brings nobody back
    where some fail. `limit_s` bounds finding out, `deadline_s` each phase of a move.
    """
    if where not in get_args(RecoverTo):
        raise ConfigurationError(f"recover(to={where!r}): one of {', '.join(get_args(RecoverTo))}")
    to = State(where)
    lost = [engine for engine in engines if engine.state in UNCLAIMED or engine.quarantined is not None]
    found = await recovered(lost, limit_s)
    why = await _in_windows(engines, Deadline(limit_s))
    able = [engine for engine in engines if engine.state not in UNCLAIMED and engine.name not in why]
    why |= await _at_the_version_of(fleet, able, deadline_s) if to is State.SERVING and weights is None else {}
    able = [engine for engine in able if engine.name not in why]
    asked = able if to is State.SERVING and weights is None else []
    behind = {engine.name: error for engine in asked if (error := stays_behind(engine)) is not None}
    why |= behind
    going = [engine for engine in able if engine.name not in why]
    why |= await _moved(moves[to], weights, going, deadline_s)
    pushed = [engine for engine in asked if needs_trainer(engine.record, engine.capabilities)]
    waiting_for: dict[Source | None, list[Engine]] = {}
    for engine in pushed:
        waiting_for.setdefault(engine.desired.source, []).append(engine)
    for source, waiting in waiting_for.items():
        why |= await _moved(moves[State.RELEASED], source, waiting, deadline_s)
    return {engine.name: _brought(engine, found.get(engine.name), to, why.get(engine.name)) for engine in engines}


async def _in_windows(engines: Sequence[Engine], deadline: Deadline) -> dict[str, LifecycleError]:
    """Why, by name, an engine was not free of another task's window by then: its memory is that of a trainer."""
    waits = (engine.until_no_window(deadline, "recover") for engine in engines)
    ended = await asyncio.gather(*waits, return_exceptions=True)
    return {engine.name: why for engine, why in zip(engines, ended, strict=True) if isinstance(why, LifecycleError)}


async def _moved(
    move: Moves, weights: Source | None, engines: Sequence[Engine], deadline_s: float | None
) -> dict[str, LifecycleError]:
    """These engines were moved, each that can be: the move is made again without those that fail in it or are refused.

    Returns why, by name, where one was not.
    """
    why: dict[str, LifecycleError] = {}
    going = list(engines)
    while going:
        try:
            await move(weights=weights, engines=going, deadline_s=deadline_s)
            break
        except FleetError as error:
            failed = {each.engine: each for each in error.exceptions if isinstance(each, LifecycleError)}
        except LifecycleError as error:  # another driver or move has one of them, and none was touched
            return why | {engine.name: error for engine in going}
        why = failed | why
        left = [engine for engine in going if engine.name not in failed]
        if len(left) == len(going):
            break
        going = left
    return why


async def _at_the_version_of(
    fleet: Sequence[Engine], engines: Sequence[Engine], deadline_s: float | None
) -> dict[str, LifecycleError]:
    """Those of the engines that were met with other weights are closed, and are to serve the version of their fleet.

    Returns why, by name, where one could not be closed.
    """
    named = {engine.desired.version: engine for engine in fleet if engine.desired.version is not None}
    if len(named) != 1:
        return {}
    ((version, one),) = named.items()
    source = source_to_serve(one.record, one.capabilities)
    others = [engine for engine in engines if engine.desired.version is None and not _holds(engine, version)]
    if source is None or isinstance(source, Kept):
        return {}
    why: dict[str, LifecycleError] = {}
    for engine in others:
        try:
            if engine.state is State.SERVING:
                await engine.pause(deadline_s=deadline_s)
            engine.set_desired(source)
        except LifecycleError as error:
            why[engine.name] = error
    return why


def _holds(engine: Engine, version: str | None) -> bool:
    weights = engine.capabilities.stage("weights")
    return all((held := engine.facts.contents.get(tag)) is not None and held.version == version for tag in weights)


def _brought(engine: Engine, found: Recovery | None, to: State, why: LifecycleError | None) -> Recovery:
    if why is not None:
        return Recovery(engine.state, why.why, why.advice or engine.advice)
    if engine.state is to or found is None:
        return Recovery(engine.state, engine.reason, engine.advice)
    return Recovery(engine.state, found.reason, engine.advice)


async def _recovered(engine: Engine, deadline_s: float) -> Recovery:
    try:
        return await engine.recover(deadline_s=deadline_s)
    except LifecycleError as error:
        return Recovery(engine.state, error.why, error.advice or engine.advice)
    except Exception as error:
        return Recovery(engine.state, f"{type(error).__name__}: {error}", engine.advice)
