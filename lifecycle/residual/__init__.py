"""How much memory an engine's processes hold: one port, and the probes behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..adapter import Process
from ..verdicts import Unmeasurable


@dataclass(frozen=True, slots=True)
class Holder:
    """One process that holds memory of a device."""

    pid: int
    device: str
    resident_bytes: int
    command: str

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.command}) holds {self.resident_bytes >> 20} MiB of {self.device}"


@dataclass(frozen=True, slots=True)
class Reading:
    """Resident bytes of one engine, summed inside each device, and the processes that hold them.

    `whole` is what is used of each of these devices by anybody, where that is known: a diagnostic.
    """

    devices: Mapping[str, int]
    holders: tuple[Holder, ...]
    probe: str
    whole: Mapping[str, int] = field(default_factory=dict)

    @property
    def resident_bytes(self) -> int:
        """The most that the engine holds on any one device."""
        return max(self.devices.values(), default=0)

    @property
    def others_bytes(self) -> int | None:
        """The most that anybody else uses of one of these devices; None where no device tells."""
        return max((used - self.devices.get(device, 0) for device, used in self.whole.items()), default=None)


class ResidualProbe(Protocol):
    """Measures from outside what an engine's process tree holds."""

    async def read(self, processes: Sequence[Process], *, deadline_s: float) -> Reading | Unmeasurable:
        """What the trees below `processes` hold now. No process at all is Unmeasurable, never 0."""
