"""Which probe measures which engine, and a figure that is believed only once it no longer falls."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.capabilities import Capabilities
from ..core.deadline import Deadline
from ..core.policy import Policy
from ..core.ports import ResidualProbe
from ..core.readings import Process, Reading
from ..core.verdicts import Unmeasurable
from .port import Kind, Node
from .this_host import ThisHost


@dataclass(frozen=True, slots=True)
class NoProbe:
    """Measures nothing, and says why."""

    reason: str

    async def read(self, processes: Sequence[Process], *, deadline_s: float) -> Reading | Unmeasurable:
        """Unmeasurable, always."""
        return Unmeasurable(reason=self.reason)


class NodeProbe:
    """Measures every process where it runs: on this host, or through the agent of its node."""

    def __init__(self, kind: Kind, policy: Policy) -> None:
        self._kind = kind
        self._policy = policy
        self._here = ThisHost()

    async def read(self, processes: Sequence[Process], *, deadline_s: float) -> Reading | Unmeasurable:
        """What the trees hold on all their nodes together. One node that cannot be measured makes it all so."""
        deadline = Deadline(deadline_s)
        readings = []
        for agent in dict.fromkeys(process.agent for process in processes):
            there = [process for process in processes if process.agent == agent]
            reading = await self._node(agent).read(
                there, kind=self._kind, scope=self._policy.residual_scope, deadline_s=deadline.look_s()
            )
            if isinstance(reading, Unmeasurable):
                return reading
            readings.append(reading)
        return joined(readings) if readings else Unmeasurable(reason="no process of the engine is known")

    def _node(self, agent: str | None) -> Node:
        if agent is None:
            return self._here
        from .remote import RemoteNode

        return RemoteNode(agent, threshold_gib=self._policy.residual_threshold_gib)


def joined(readings: Sequence[Reading]) -> Reading:
    """One reading of several nodes, which share no device."""
    return Reading(
        {device: size for each in readings for device, size in each.devices.items()},
        tuple(holder for each in readings for holder in each.holders),
        " + ".join(dict.fromkeys(each.probe for each in readings)),
        {device: size for each in readings for device, size in each.whole.items()},
    )


def probe_for(capabilities: Capabilities, policy: Policy | None = None) -> ResidualProbe:
    """The probe for the device that the engine says it runs on."""
    policy = policy or Policy()
    if capabilities.device is None:
        return NoProbe("it does not say what it runs on; pass probe=..., or accept memory_returned=acknowledged")
    probe: ResidualProbe = NodeProbe(capabilities.device, policy)
    return SteadyProbe(probe, policy.residual_still_s) if policy.residual_still_s else probe


#: Bytes by which a figure moves without anything having been returned.
NOISE_BYTES = 1 << 20


POLL_S = 0.05


class SteadyProbe:
    """Asks another probe until its figure has not fallen for `still_s`, or the deadline passes."""

    def __init__(self, probe: ResidualProbe, still_s: float) -> None:
        self._probe = probe
        self._still_s = still_s

    async def read(self, processes: Sequence[Process], *, deadline_s: float) -> Reading | Unmeasurable:
        """The last figure: steady, or the one of the deadline."""
        deadline = Deadline(deadline_s)
        lowest = await self._probe.read(processes, deadline_s=deadline.left_s)
        fell_s = deadline.elapsed_s
        reading = lowest
        while isinstance(reading, Reading) and isinstance(lowest, Reading):
            if deadline.elapsed_s - fell_s >= self._still_s or deadline.left_s <= POLL_S:
                break
            await asyncio.sleep(POLL_S)
            reading = await self._probe.read(processes, deadline_s=deadline.left_s)
            if isinstance(reading, Reading) and reading.resident_bytes < lowest.resident_bytes - NOISE_BYTES:
                lowest, fell_s = reading, deadline.elapsed_s
        return reading
