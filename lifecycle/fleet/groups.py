"""Groups of a fleet: engines of one role."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """Engines of one role. `drain_after` names groups that must be idle before this one is drained.

    With prefill and decode engines apart, prefill drains first: what it has begun still goes to decode.
    """

    offload: bool = True
    drain_after: tuple[str, ...] = ()
