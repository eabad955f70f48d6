"""The adapter: the port's calls, as effects in a thread of this process that are joined and never cancelled."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Mapping
from typing import Any

import torch

from lifecycle.core.calls import Call, Reply
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.commands import Command, Release
from lifecycle.core.errors import ConfigurationError
from lifecycle.core.facts import Fact, Facts, Grade, TagSpec
from lifecycle.core.observation import Observation, Probe
from lifecycle.core.readings import Process
from lifecycle.core.verdicts import NotApplicable, Pending, Proved, Refuted, Verdict
from lifecycle.nodes.processes import by_pid

from .effects import Effects
from .errors import listed, mib
from .plan import Has, plan, push
from .tenant import Tenant

_boots = itertools.count(1)


class TorchAdapter:
    """Drives one tenant of a device in this process: an engine, or with `serves=False` a trainer."""

    def __init__(self, tenant: Tenant, *, serves: bool = True, checksum: bool = False) -> None:
        self.tenant = tenant
        self._serves = serves
        self._checksum = checksum
        self._process = by_pid(os.getpid())
        self._boot = f"{self._process.pid}-{self._process.start_time:.2f}-{next(_boots)}"
        self._effects = Effects(tenant.tags.owner)

    @property
    def url(self) -> str:
        """Its name, as an address that nobody can dial."""
        return f"torch:{self.tenant.tags.owner}"

    async def connect(self, *, deadline_s: float) -> Capabilities:
        """What was built, as it stands now. Raises ConfigurationError where there is nothing to release or to ask."""
        if not self.tenant.tags.known:
            raise ConfigurationError(
                f"{self.url}: no region was opened; build the model inside engine.region('weights')"
            )
        if self._serves and (not self.tenant.owners or self.tenant.hooks.generate is None):
            raise ConfigurationError(f"{self.url}: attach(modules, generate=...) before connecting")
        return self.capabilities()

    def capabilities(self) -> Capabilities:
        """What the tenant can do, with the sizes of its regions now."""
        tags = self.tenant.tags
        on_cuda = tags.backend.device.type == "cuda"
        return Capabilities(
            engine="torch",
            version=torch.__version__,
            tags=tuple(self._spec(tag) for tag in tags.known),
            pause=self.tenant.in_flight.modes,
            memory_saver=True,
            saver="torch_memory_saver" if on_cuda else None,
            hook_mode=tags.backend.hook_mode,
            update=frozenset({"disk", "push"}) if self._serves else frozenset(),
            has_admission=self._serves,
            cancellable=False,
            device="cuda" if on_cuda else "cpu",
            evidence={"idle": Grade.REPORTED, "answers": Grade.MEASURED},
            notes=tuple(note for tag in tags.known for note in self._notes(tag)),
        )

    def plan(self, command: Command, facts: Facts) -> tuple[Call, ...]:
        """The effects of a command, in order."""
        tenant = self.tenant
        has = Has(frozenset(tenant.stagings), frozenset(tenant.buffers), tenant.hooks.rebuild_groups is not None)
        return plan(command, facts, self.capabilities(), has)

    def host_bytes(self, command: Release, facts: Facts) -> int:
        """Host memory that this release would take: of buffers that are there already, none."""
        calls = [call for call in self.plan(command, facts) if "tag" in call.args]
        return sum(self.tenant.host_bytes(call.name, call.args["tag"]) for call in calls)

    def push_call(self, how: str, args: Mapping[str, Any], version: str) -> Call:
        """One effect of a push."""
        return push(how, args, version)

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        """Begins one effect and waits for its end; one that outlasts the deadline goes on, and barrier() joins it."""
        effect = getattr(self.tenant, call.name)
        ended = await self._effects.run(lambda: effect(**call.args), deadline_s)
        if ended is None:
            return Reply("lost", detail=f"it still runs after {deadline_s:.1f} s", late=True)
        if ended.error is not None:
            return Reply("rejected", detail=_told(ended.error))
        return Reply("done", value=ended.value)

    async def observe(self, want: frozenset[Fact], *, deadline_s: float) -> Observation:
        """What the tenant's own books say; the checksum is computed only where it is wanted, of what is mapped."""
        tenant = self.tenant
        checksum = None
        if self._checksum and Fact.CHECKSUM in want and not tenant.tags.released & tenant.owners.keys():
            summed = await self._effects.run(tenant.checksum, deadline_s)
            checksum = summed.value if summed is not None else None
        return Observation(
            boot=self._boot,
            alive=True,
            admission="closed" if tenant.in_flight.is_closed() else "open",
            running=tenant.in_flight.running(),
            released_tags=tenant.tags.released,
            weights_label=tenant.version,
            checksum=checksum,
            sampled_at=time.monotonic(),
        )

    async def prove_idle(self, facts: Facts, *, deadline_s: float) -> Verdict:
        """No request is in flight, and the device has run everything that was queued on it.

        Caches and garbage are given back too, so that what is measured before a release holds nothing that the
        release would give back beside its tags.
        """
        running = self.tenant.in_flight.running()
        if running:
            return Pending(reason=f"{running} requests are in flight")
        ended = await self._effects.run(self.tenant.settle, deadline_s)
        if ended is None:
            return Pending(reason="no request is in flight, and the device still works")
        if ended.error is not None:
            return Refuted(reason=f"the device failed: {_told(ended.error)}")
        return Proved(grade=Grade.REPORTED, reason="no request is in flight and the device is synchronised")

    async def barrier(self, *, deadline_s: float) -> bool:
        """True once every effect that was begun has ended."""
        return await self._effects.settled(deadline_s)

    async def answers(self, probe: Probe, *, deadline_s: float) -> Verdict:
        """Real tokens, from the user's own function."""
        generate = self.tenant.hooks.generate
        if generate is None:
            return NotApplicable(reason="it serves no requests")
        ended = await self._effects.run(lambda: tuple(generate(probe)), deadline_s)
        if ended is None:
            return Pending(reason=f"it generated nothing in {deadline_s:.1f} s")
        if ended.error is not None or not ended.value:
            return Refuted(reason=f"it generated nothing: {_told(ended.error) if ended.error else 'no token came'}")
        return Proved(grade=Grade.MEASURED, reason="it generated a token", figures={"output_ids": ended.value})

    async def processes(self) -> tuple[Process, ...] | None:
        """This process."""
        return (self._process,)

    async def aclose(self) -> None:
        """Its thread has ended and its name is free; memory stays as it is, staged contents are given up."""
        await asyncio.to_thread(self._effects.close)
        for staging in self.tenant.every_staging():
            staging.close()
        self.tenant.tags.close()

    def _spec(self, tag: str) -> TagSpec:
        tags = self.tenant.tags
        kept = tag in self.tenant.stagings or tags.backup(tag) is not None
        return TagSpec(tag, tags.stage(tag), "kept" if kept else "discarded", self.tenant.expected_bytes(tag))

    def _notes(self, tag: str) -> list[str]:
        outside = self.tenant.outside(tag)
        if not outside:
            return []
        size = sum(leaf.tensor.nbytes for leaf in outside)
        names = listed([leaf.name for leaf in outside])
        return [f"{mib(size)} of {tag} lie outside every region and will not be given back: {names}"]


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if not isinstance(error, RuntimeError) else str(error)
