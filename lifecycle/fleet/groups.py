"""Groups of a fleet: engines of one role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..core.errors import ConfigurationError
from ..engine.engine import Engine


@dataclass(frozen=True, slots=True)
class Group:
    """Engines of one role. `drain_after` names groups that must be idle before this one is drained.

    With prefill and decode engines apart, prefill drains first: what it has begun still goes to decode.
    """

    offload: bool = True
    drain_after: tuple[str, ...] = ()


def waves(engines: Sequence[Engine], groups: Mapping[str, Group]) -> list[list[Engine]]:
    """The engines in waves, each of groups that wait for the groups before. ConfigurationError for a circle of them."""
    left, found = list(engines), list[list[Engine]]()
    while left:
        waiting = {engine.group for engine in left}
        wave = [engine for engine in left if not waiting & set(groups[engine.group].drain_after)]
        if not wave:
            raise ConfigurationError(f"the groups {', '.join(sorted(waiting))} drain after each other in a circle")
        found.append(wave)
        left = [engine for engine in left if engine not in wave]
    return found
