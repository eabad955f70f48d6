"""The probe that measures an engine's residual memory, and the wait until its figure is stable."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.capabilities import Capabilities
from ..core.deadline import Deadline
from ..core.policy import Policy
from ..core.ports import ResidualProbe
from ..core.readings import Process, Reading
from ..core.units import MIB
from ..core.verdicts import Unmeasurable
from .locate import by_node
from .port import Kind

#: A figure that is lower by no more than this has not fallen: it moves so much without anything being returned.
NOISE_BYTES = MIB

#: Seconds between two readings of a figure that is not stable yet.
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class NoProbe:
    """Measures nothing; every reading is Unmeasurable with this reason."""

    reason: str

    async def read(self, processes: Sequence[Process], *, deadline_s: float) -> Reading | Unmeasurable:
        """Returns Unmeasurable, always."""
        return Unmeasurable(reason=self.reason)


class NodeProbe:
    """Measures every process on its own node: this host, or another through its agent."""

    def __init__(self, kind: Kind, policy: Policy) -> None:
        self._kind = kind
        self._policy = policy

    async def read(self, processes: Sequence[Process], *, deadline_s: float) -> Reading | Unmeasurable:
        """Returns what the trees hold on all their nodes; Unmeasurable as soon as one node is."""
        clock, readings = Deadline(deadline_s), []
        for node, there in by_node(processes, threshold_gib=self._policy.residual_threshold_gib):
            reading = await node.read(
                there, kind=self._kind, scope=self._policy.residual_scope, deadline_s=clock.look_s()
            )
            if isinstance(reading, Unmeasurable):
                return reading
            readings.append(reading)
        return joined(readings) if readings else Unmeasurable(reason="no process of the engine is known")


def joined(readings: Sequence[Reading]) -> Reading:
    """Returns one reading with the devices and holders of all of these; nodes share no device."""
    return Reading(
        {device: size for each in readings for device, size in each.devices.items()},
        tuple(holder for each in readings for holder in each.holders),
        " + ".join(dict.fromkeys(each.probe for each in readings)),
        {device: size for each in readings for device, size in each.whole.items()},
    )


def probe_for(capabilities: Capabilities, policy: Policy | None = None) -> ResidualProbe:
    """Returns the probe for the kind of device that the engine says it runs on."""
    policy = policy or Policy()
    if capabilities.device is None:
        return NoProbe("it does not say what it runs on; pass probe=..., or accept memory_returned=acknowledged")
    probe: ResidualProbe = NodeProbe(capabilities.device, policy)
    return StableReadingProbe(probe, policy.residual_stable_s) if policy.residual_stable_s else probe


class StableReadingProbe:
    """Reads another probe until its figure has not fallen for `stable_s` seconds, or the deadline passes."""

    def __init__(self, probe: ResidualProbe, stable_s: float) -> None:
        self._probe = probe
        self._stable_s = stable_s

    async def read(self, processes: Sequence[Process], *, deadline_s: float) -> Reading | Unmeasurable:
        """Returns the last reading, which is stable unless the deadline passed. Unmeasurable is returned at once."""
        clock = Deadline(deadline_s)
        lowest = await self._probe.read(processes, deadline_s=clock.left_s)
        fell_at_s = clock.elapsed_s
        reading = lowest
        while isinstance(reading, Reading) and isinstance(lowest, Reading):
            if clock.elapsed_s - fell_at_s >= self._stable_s or clock.left_s <= POLL_S:
                break
            await asyncio.sleep(POLL_S)
            reading = await self._probe.read(processes, deadline_s=clock.left_s)
            if isinstance(reading, Reading) and reading.resident_bytes < lowest.resident_bytes - NOISE_BYTES:
                lowest, fell_at_s = reading, clock.elapsed_s
        return reading
