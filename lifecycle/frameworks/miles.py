"""miles: a RolloutServer whose verbs are awaited, with tags, and with miles' words for what becomes of requests.

    server = RolloutServer.of(server_groups, engine_of)      # mode="retract": requests in flight go on afterwards
    await server.offload(tags=["kv_cache"])                  # None: all of them
    await server.onload(tags=["kv_cache"])

Source: miles, ray/rollout/rollout_server.py and server_group.py, of 2026-08-21: a slot is a ServerEngine, which has an
`actor_handle` once it `is_allocated`. The offload default and the names of its variables: `lifecycle.launch.miles`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, get_args

from ..core.errors import ConfigurationError
from ..core.facts import PauseMode
from ..core.policy import Policy
from ..core.ports import Router
from ..fleet.fleet import Fleet
from ..fleet.groups import Group
from .server import AsyncRolloutServer
from .slots import EngineOf, FleetMembers, ServerGroup, SlotMembers

#: The modes of miles' pause_generation(mode=). With `in_place` requests still hold memory: no engine is released then.
MilesMode = Literal["retract", "abort"]

_MODES: Mapping[MilesMode, PauseMode] = {"retract": "keep", "abort": "abort"}


class RolloutServer(AsyncRolloutServer):
    """miles' RolloutServer, proved: `offload(tags)`, `onload(tags)`, and slime's two halves of the latter."""

    def __init__(
        self, fleet: Fleet, *, mode: MilesMode = "retract", update_weights: bool = True, by: str | None = None
    ) -> None:
        super().__init__(FleetMembers(fleet), mode=_mode(mode), update_weights=update_weights, by=by)

    @classmethod
    def of(
        cls,
        server_groups: Sequence[ServerGroup],
        engine_of: EngineOf,
        *,
        mode: MilesMode = "retract",
        update_weights: bool = True,
        by: str | None = None,
        router: Router | None = None,
        policy: Policy | None = None,
        groups: Mapping[str, Group] | None = None,
    ) -> Self:
        """Over the slots of these groups, as they are whenever a verb is called; needs `aclose()`, or `async with`.

        `engine_of` makes an engine of an actor's handle, once for each. The groups of several servers, given together,
        are offloaded with one barrier. `router` and `groups` as of a Fleet, and `policy` too: that of the first engine
        unless it is given.
        """
        slots = [_Allocated(group) for group in server_groups]
        members = SlotMembers(slots, engine_of, router=router, policy=policy, groups=groups)
        server = cls.__new__(cls)
        AsyncRolloutServer.__init__(server, members, mode=_mode(mode), update_weights=update_weights, by=by)
        return server


class _Allocated:
    """A group of miles', whose slots hold a handle once they are allocated."""

    def __init__(self, group: ServerGroup) -> None:
        self._group = group

    @property
    def engines(self) -> list[Any]:
        """A handle for each slot; None where it has none."""
        return [_handle(slot) for slot in self._group.engines]

    @property
    def needs_offload(self) -> bool:
        """Whether its engines share devices with the trainer."""
        return self._group.needs_offload


def _handle(slot: Any) -> Any:
    """The handle in a slot; None where it is empty. One that is no ServerEngine is its handle itself."""
    if slot is None or not hasattr(slot, "is_allocated"):
        return slot
    return slot.actor_handle if slot.is_allocated else None


def _mode(mode: str) -> PauseMode:
    for name in get_args(MilesMode):
        if mode == name:
            return _MODES[name]
    why = "; requests that are frozen in place hold memory, so nothing can be released" if mode == "in_place" else ""
    raise ConfigurationError(f"mode must be one of {', '.join(get_args(MilesMode))}, got {mode!r}{why}")
