"""Which probe measures which engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..adapter import Capabilities, Process
from ..verdicts import Unmeasurable
from . import Reading, ResidualProbe
from .process_memory import ProcessMemoryProbe


@dataclass(frozen=True, slots=True)
class NoProbe:
    """Measures nothing, and says why."""

    reason: str

    async def read(self, processes: Sequence[Process], *, deadline_s: float) -> Reading | Unmeasurable:
        """Unmeasurable, always."""
        return Unmeasurable(reason=self.reason)


def probe_for(capabilities: Capabilities) -> ResidualProbe:
    """The probe for the device that the engine says it runs on."""
    if capabilities.device == "cpu":
        return ProcessMemoryProbe()
    return NoProbe("there is no probe of GPU memory yet; pass probe=... or accept memory_returned=acknowledged")
