"""What one move does with each group: a policy discards its weights, a teacher keeps them, another gives KV alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..core.errors import ConfigurationError
from ..core.facts import PauseMode, Tag
from ..core.sources import Source, checked
from ..core.states import State
from ..engine.engine import Engine
from ..rules.desired import source_after_release
from ..rules.planner import Goal
from .groups import Group, check_groups


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """What one move does with the engines of a group. A field that is None is as the move's own argument says.

    With `offload=False` the group takes no part in this move: it serves on.
    """

    offload: bool = True
    tags: Collection[Tag] | None = None
    weights: Source | None = None
    mode: PauseMode | None = None

    def __post_init__(self) -> None:
        checked(self.weights)
        if isinstance(self.tags, str) or (self.tags is not None and not self.tags):
            raise ConfigurationError(f"GroupPlan(tags={self.tags!r}): a collection of tags, or None for all of them")
        if not self.offload and (self.tags, self.weights, self.mode) != (None, None, None):
            raise ConfigurationError(
                "GroupPlan(offload=False) takes no part in the move: leave out tags, weights, mode"
            )


Plan = Mapping[str, GroupPlan]

#: What ranks compare of a group, beside what its engines are to do.
TAKES_PART = "whether {} takes part"

_AS_ASKED = GroupPlan()


def taking_part_by(plan: Plan | None, engines: Sequence[Engine], groups: Mapping[str, Group]) -> list[Engine]:
    """Those of the engines that take part by this plan; ConfigurationError where it names what there is not."""
    check_groups(plan or (), groups)
    for name, each in (plan or {}).items():
        if not isinstance(each, GroupPlan):
            raise ConfigurationError(f"the plan of group {name!r} must be a GroupPlan, got {each!r:.100}")
        if each.offload and not groups[name].offload:
            raise ConfigurationError(
                f"group {name!r} is never part of a move (offload=False): leave it out of the plan"
            )
    return [engine for engine in engines if _of(engine, plan).offload]


def goals_of(
    engines: Sequence[Engine],
    plan: Plan | None,
    tags: Collection[Tag] | None,
    weights: Source | None,
    mode: PauseMode,
) -> dict[str, Goal]:
    """Where each engine is to be after an offload, by name: what the plan of its group says, else what is asked of all.

    Where neither names a source it comes back with what is known to bring it back.
    """
    goals = {}
    for engine in engines:
        own = _of(engine, plan)
        named = tags if own.tags is None else own.tags
        source = source_after_release(engine.record, own.weights or weights)
        goals[engine.name] = Goal(State.RELEASED, None if named is None else frozenset(named), source, own.mode or mode)
    return goals


def said_of(plan: Plan | None) -> dict[str, str]:
    """What a plan says of groups that ranks cannot tell by their engines alone."""
    said = {}
    for name, each in (plan or {}).items():
        if not each.offload:
            said[TAKES_PART.format(name)] = "no"
        elif each.weights is not None:
            said[f"the kind of source of {name}"] = type(each.weights).__name__
    return said


def _of(engine: Engine, plan: Plan | None) -> GroupPlan:
    return (plan or {}).get(engine.group, _AS_ASKED)
