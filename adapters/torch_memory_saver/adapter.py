"""The adapter: the port's calls run in a thread of this process. They are joined and never cancelled."""

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
from lifecycle.core.requests import RequestCounts
from lifecycle.core.verdicts import REQUESTS_RUN, NotApplicable, Pending, Proved, Refuted, Verdict
from lifecycle.nodes.processes import by_pid

from ..home import HomeThread
from .errors import listed, mib_rounded_up
from .gate import CountsEnds
from .plan import Attached, plan, push
from .tenant import Tenant

_boots = itertools.count(1)


class TorchAdapter:
    """Drives one tenant of a device in this process: an engine, or a trainer with `serves=False`.

    With `checksum`, observations have a checksum of the weights.
    """

    def __init__(self, tenant: Tenant, *, serves: bool = True, checksum: bool = False) -> None:
        self.tenant = tenant
        self._serves = serves
        self._checksum = checksum
        self._process = by_pid(os.getpid())
        self._boot = f"{self._process.pid}-{self._process.start_time:.2f}-{next(_boots)}"
        self._thread = HomeThread(tenant.tags.name)

    @property
    def url(self) -> str:
        """The tenant's name in the form of a URL. It cannot be connected to."""
        return f"torch:{self.tenant.tags.name}"

    async def connect(self, *, deadline_s: float) -> Capabilities:
        """The tenant's capabilities. Raises ConfigurationError where it has no region, or serves and has no modules."""
        if not self.tenant.tags.known:
            raise ConfigurationError(
                f"{self.url}: no region was opened; build the model inside engine.region('weights')"
            )
        if self._serves and (not self.tenant.modules_by_tag or self.tenant.hooks.generate is None):
            raise ConfigurationError(f"{self.url}: attach(modules, generate=...) before connecting")
        return self.capabilities()

    def capabilities(self) -> Capabilities:
        """What the tenant can do, with the present sizes of its regions."""
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
            reports_released=True,
            device="cuda" if on_cuda else "cpu",
            evidence={"idle": Grade.REPORTED, "answers": Grade.MEASURED},
            notes=tuple(note for tag in tags.known for note in self._notes(tag)),
        )

    def plan(self, command: Command, facts: Facts) -> tuple[Call, ...]:
        """The calls of a command, in order."""
        tenant = self.tenant
        attached = Attached(
            staged=frozenset(tenant.stagings),
            buffers=frozenset(tenant.buffers),
            groups=tenant.hooks.rebuild_groups is not None,
        )
        return plan(command, facts, self.capabilities(), attached)

    def host_bytes(self, command: Release, facts: Facts) -> int:
        """Bytes of host memory that this release would allocate, beyond the buffers of the last one."""
        calls = [call for call in self.plan(command, facts) if "tag" in call.args]
        return sum(self.tenant.host_bytes(call.name, call.args["tag"]) for call in calls)

    def push_call(self, how: str, args: Mapping[str, Any], version: str) -> Call:
        """One call of a push: `how` is `tensors` or `in_place`."""
        return push(how, args, version)

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        """Runs one call in the tenant's thread. One that outlasts the deadline runs on, and `barrier` waits for it."""
        method = getattr(self.tenant, call.name)
        outcome = await self._thread.run(lambda: method(**call.args), deadline_s)
        if outcome is None:
            return Reply("lost", detail=f"it still runs after {deadline_s:.1f} s", late=True)
        if outcome.error is not None:
            return Reply("rejected", detail=_message(outcome.error))
        return Reply("done", value=outcome.value)

    async def observe(self, want: frozenset[Fact], *, deadline_s: float) -> Observation:
        """Reads the tenant's own records. A checksum is computed where it is wanted and all weights are mapped."""
        tenant = self.tenant
        checksum = None
        if self._checksum and Fact.CHECKSUM in want and not tenant.tags.released & tenant.modules_by_tag.keys():
            outcome = await self._thread.run(tenant.checksum, deadline_s)
            checksum = outcome.value if outcome is not None else None
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

    async def request_counts(self, *, deadline_s: float) -> RequestCounts | None:
        """What the gate counts of requests; None where the user's own does not."""
        gate = self.tenant.in_flight
        return gate.counts(self._boot) if self._serves and isinstance(gate, CountsEnds) else None

    async def prove_idle(self, facts: Facts, *, deadline_s: float) -> Verdict:
        """Proved where no request is in flight and the device has run everything queued on it.

        Caches and garbage are freed too. Otherwise a release would free them, and they would count as memory of its
        tags.
        """
        running = self.tenant.in_flight.running()
        if running:
            return Pending(reason=f"{running} requests are in flight", figures={REQUESTS_RUN: True})
        outcome = await self._thread.run(self.tenant.quiesce, deadline_s)
        if outcome is None:
            return Pending(reason="no request is in flight, and the device still runs queued work")
        if outcome.error is not None:
            return Refuted(reason=f"the device failed: {_message(outcome.error)}")
        return Proved(grade=Grade.REPORTED, reason="no request is in flight and the device is synchronised")

    async def barrier(self, *, deadline_s: float) -> bool:
        """True once every call that was begun has ended."""
        return await self._thread.all_ended(deadline_s)

    async def answers(self, probe: Probe, *, deadline_s: float) -> Verdict:
        """Generates tokens by the user's function `generate`."""
        generate = self.tenant.hooks.generate
        if generate is None:
            return NotApplicable(reason="it serves no requests")
        outcome = await self._thread.run(lambda: tuple(generate(probe)), deadline_s)
        if outcome is None:
            return Pending(reason=f"it generated nothing in {deadline_s:.1f} s")
        if outcome.error is not None or not outcome.value:
            why = _message(outcome.error) if outcome.error else "no token came"
            return Refuted(reason=f"it generated nothing: {why}")
        return Proved(grade=Grade.MEASURED, reason="it generated a token", figures={"output_ids": outcome.value})

    async def processes(self) -> tuple[Process, ...] | None:
        """This process."""
        return (self._process,)

    async def aclose(self) -> None:
        """Ends the thread, discards staged contents and frees the tenant's name. Device memory stays as it is."""
        await asyncio.to_thread(self._thread.close)
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
        return [f"{mib_rounded_up(size)} of {tag} lie outside every region and will not be released: {names}"]


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if not isinstance(error, RuntimeError) else str(error)
