"""Groups of a fleet: engines of one role."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from ..core.errors import ConfigurationError
from ..core.sources import Source, checked
from ..engine.engine import Engine


@dataclass(frozen=True, slots=True)
class Group:
    """Engines of one role. `drain_after` names groups that must be idle before this one is drained.

    With prefill and decode engines apart, prefill drains first: what it has begun still goes to decode.
    """

    offload: bool = True
    drain_after: tuple[str, ...] = ()


def waves_of(engines: Sequence[Engine], groups: Mapping[str, Group]) -> list[list[Engine]]:
    """The engines in waves, each of groups that wait for the groups before. ConfigurationError names a circle."""
    members: dict[str, list[Engine]] = {}
    for engine in engines:
        members.setdefault(engine.group, []).append(engine)
    sorter = TopologicalSorter({name: members.keys() & set(groups[name].drain_after) for name in members})
    try:
        sorter.prepare()
    except CycleError as error:
        circle = sorted(set(error.args[1]))
        raise ConfigurationError(f"the groups {', '.join(circle)} drain after each other in a circle") from error
    number: dict[str, int] = {}
    waves: list[list[Engine]] = []
    while sorter.is_active():
        ready = sorter.get_ready()
        number |= dict.fromkeys(ready, len(waves))
        waves.append([])
        sorter.done(*ready)
    for engine in engines:
        waves[number[engine.group]].append(engine)
    return waves


def by_engine(
    engines: Sequence[Engine], weights: Source | Mapping[str, Source] | None, groups: Mapping[str, Group]
) -> dict[str, Source | None]:
    """What is named for each engine, by its name, where it is named for all or by group."""
    if not isinstance(weights, Mapping):
        return {engine.name: checked(weights) for engine in engines}
    check_groups(weights, groups)
    return {engine.name: checked(weights.get(engine.group)) for engine in engines}


def check_groups(named: Iterable[str], groups: Mapping[str, Group]) -> None:
    """There are groups of these names; ConfigurationError names one that there is not."""
    for name in named:
        if name not in groups:
            raise ConfigurationError(f"there is no group {name!r}; the fleet has {', '.join(groups)}")


def check_members(engines: Sequence[Engine], groups: Mapping[str, Group]) -> None:
    """Each engine stands once among these, and each group waits for groups that there are; else ConfigurationError."""
    for what, values in (
        ("name", [engine.name for engine in engines]),
        ("URL", [engine.adapter.url for engine in engines]),
    ):
        times = Counter(values)
        twice = next((value for value in values if times[value] > 1), None)
        if twice is not None:
            raise ConfigurationError(f"{what} {twice} stands twice in the fleet; an engine belongs in it once")
    for name, group in groups.items():
        for other in group.drain_after:
            if other not in groups:
                raise ConfigurationError(f"group {name} drains after {other!r}, and there is no such group")
    waves_of(engines, groups)
