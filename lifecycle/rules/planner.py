"""The planner: from where an engine is and what is wanted of it to the next command. Pure and level-triggered.

Nothing is remembered between two questions: an engine that settled half-way, rejoined, or was moved by somebody else
is asked about as it stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..core.capabilities import Capabilities
from ..core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from ..core.facts import Facts, PauseMode, Tag
from ..core.policy import PAUSE_MODE
from ..core.sources import Kept, Source, checked
from ..core.states import State
from .knowledge import expected_after
from .table import row

#: The phases of the two moves. Each waits for all participants before the next begins.
OFFLOAD: tuple[type[Command], ...] = (Pause, Drain, Release)
#: In an onload an engine whose prefix cache may be stale, or whose requests were frozen, is drained first.
ONLOAD: tuple[type[Command], ...] = (Pause, Drain, RestoreWeights, UpdateWeights, RestoreKV, Resume)

#: No route takes more commands: a pause that has to be changed, then both moves.
_LONGEST = 1 + len(OFFLOAD) + len(ONLOAD)


@dataclass(frozen=True, slots=True)
class Goal:
    """Where an engine should be: `released` with these tags (None: all) given back, or `serving`."""

    state: State
    tags: frozenset[Tag] | None = None
    weights: Source | None = None
    mode: PauseMode = PAUSE_MODE

    def __post_init__(self) -> None:
        checked(self.weights)


@dataclass(frozen=True, slots=True)
class PlannerView:
    """Where an engine is, as far as the planner needs to know."""

    state: State
    facts: Facts
    capabilities: Capabilities
    weights_are_valid: bool


def next_command(now: PlannerView, goal: Goal) -> Command | None:
    """The next command on the way to the goal; None where it is reached, or no command leads there from here."""
    return _towards_released(now, goal) if goal.state is State.RELEASED else _towards_serving(now, goal)


def _towards_released(now: PlannerView, goal: Goal) -> Command | None:
    match now.state:
        case State.SERVING:
            return Pause(goal.mode)
        case State.PAUSED:
            return _towards_drained(now, goal.mode)
        case State.DRAINED | State.WEIGHTS_RESTORED | State.KV_RESTORED:
            return Release(goal.tags, goal.weights)
    return None


def _towards_drained(now: PlannerView, wanted: PauseMode) -> Command:
    mode = now.facts.paused_by
    traits = now.capabilities.pause.get(mode) if mode else None
    drains = traits is not None and traits.drains
    return Drain() if drains or mode == wanted else Pause(wanted)


def safe_mode(now: PlannerView, wanted: PauseMode) -> PauseMode | None:
    """The mode, or another that drains where entering it could hang the engine; None where it has none.

    How an engine that is paused was paused may be unknown: then only a mode will do that can be entered from any.
    """
    modes, current = now.capabilities.pause, now.facts.paused_by
    safe = [name for name, each in modes.items() if each.drains and not each.needs_router]
    unknown = current is None and now.state is State.PAUSED
    safe = [name for name in safe if not (modes[name].unsafe_from if unknown else {current} & modes[name].unsafe_from)]
    return wanted if wanted in safe else next(iter(safe), None)


def _towards_serving(now: PlannerView, goal: Goal) -> Command | None:
    update = None if now.weights_are_valid or goal.weights in (None, Kept()) else goal.weights
    match now.state:
        case State.RELEASED:
            return RestoreWeights()
        case State.WEIGHTS_RESTORED:
            return RestoreKV() if update is None else UpdateWeights(update)
        case State.PAUSED if update is not None or not now.facts.cache_fresh:
            return _towards_drained(now, safe_mode(now, goal.mode) or goal.mode)
        case State.DRAINED if update is not None:
            return UpdateWeights(update)
        case State.DRAINED | State.PAUSED | State.KV_RESTORED:
            return Resume()
    return None


def route(now: PlannerView, goal: Goal) -> Iterator[tuple[PlannerView, Command]]:
    """The commands from here to the goal, each with what will be known when it is given, if all goes well."""
    for _ in range(_LONGEST):
        command = next_command(now, goal)
        operation = row(command.name, now.state) if command is not None else None
        if command is None or operation is None:
            return
        yield now, command
        valid = now.weights_are_valid or isinstance(command, UpdateWeights)
        now = PlannerView(operation.dest, expected_after(now.facts, command), now.capabilities, valid)
