"""Rollout servers over scripted engines: groups with slots, a shared journal, and where every engine is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lifecycle import Engine, Fleet, TagSpec
from lifecycle.frameworks.server import AsyncRolloutServer
from lifecycle.frameworks.slots import FleetMembers, SlotMembers
from lifecycle.testing import KV_CACHE, QUICK, WEIGHTS, Journal, ScriptedAdapter, ScriptedRouter, capabilities


@dataclass
class Group:
    """A group of a framework: a handle in each slot, or None."""

    engines: list[Any]
    needs_offload: bool = True


@dataclass
class Actors:
    """Engines by the handle of their actor, which is a name; an engine is made of each once."""

    tags: Sequence[TagSpec] = (WEIGHTS, KV_CACHE)
    policy: Any = QUICK
    router: bool = False
    #: The device that all are on; None: each on one of its own.
    device: str | None = None
    caps: dict[str, Any] = field(default_factory=dict)
    journal: Journal = field(default_factory=Journal)
    made: dict[str, Engine] = field(default_factory=dict)

    def engine_of(self, handle: str) -> Engine:
        can, devices = capabilities(*self.tags, **self.caps), (self.device or f"gpu-{handle}",)
        adapter = ScriptedAdapter(handle, can, journal=self.journal, devices=devices)
        options: dict[str, Any] = {"policy": self.policy, "has_router": self.router, "lease": None}
        self.made[handle] = Engine(adapter, name=handle, probe=adapter.probe, **options)
        return self.made[handle]

    def members(self, groups: Sequence[Group]) -> SlotMembers:
        return SlotMembers(groups, self.engine_of, router=self._router())

    def server(self, *groups: Group, **options: Any) -> AsyncRolloutServer:
        return AsyncRolloutServer(self.members(groups), **options)

    async def over_a_fleet(self, *handles: str) -> AsyncRolloutServer:
        fleet = Fleet([self.engine_of(each) for each in handles], policy=self.policy, router=self._router())
        return AsyncRolloutServer(FleetMembers(await fleet.__aenter__()))

    def _router(self) -> ScriptedRouter | None:
        return ScriptedRouter(self.journal) if self.router else None

    @property
    def states(self) -> dict[str, str]:
        return {name: str(engine.state) for name, engine in self.made.items()}

    def first(self, *words: str) -> int:
        """Where the first line of the journal with these words stands."""
        return next(at for at, entry in enumerate(self.journal) if all(word in str(entry) for word in words))

    def last(self, *words: str) -> int:
        """Where the last one stands."""
        return max(at for at, entry in enumerate(self.journal) if all(word in str(entry) for word in words))

    def calls(self, handle: str | None = None) -> list[str]:
        return self.journal.calls(handle) if handle else self.journal.calls()


async def until(journal: Journal, begins: str, deadline_s: float = 5.0) -> None:
    """The journal has a line that begins so."""
    async with asyncio.timeout(deadline_s):
        for _ in iter(lambda: any(str(entry).startswith(begins) for entry in journal), True):
            await asyncio.sleep(0)


async def push(engines: Sequence[Engine]) -> None:
    """The trainer pushes to every engine."""
    for engine in engines:
        await engine.push("tensor")


async def cycle(server: AsyncRolloutServer, version: str = "v1") -> None:
    """A window as slime's training loop has it."""
    await server.offload()
    await server.onload_weights()
    async with server.updating_weights(version) as engines:
        await push(engines)
    await server.onload_kv()
