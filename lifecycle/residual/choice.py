"""Which probe measures which engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..adapter import Capabilities, Process
from ..config import Policy
from ..deadline import Deadline
from ..nodes import Kind, Node, ThisHost
from ..verdicts import Unmeasurable
from . import Reading, ResidualProbe
from .steady import SteadyProbe


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
