"""Processes of an engine, and how much memory they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .frozen import EMPTY, freeze_fields


@dataclass(frozen=True, slots=True)
class Process:
    """One process of an engine. `start_time` tells it from a later one of the same pid.

    That is in seconds of a clock of its host that nobody sets.

    `agent` is where the agent of its node listens ("host:port"); None where it runs on this host.
    """

    node: str
    pid: int
    start_time: float
    rank: int | None = None
    devices: tuple[str, ...] = ()
    agent: str | None = None


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
    whole: Mapping[str, int] = EMPTY

    def __post_init__(self) -> None:
        freeze_fields(self, "devices", "whole")

    @property
    def resident_bytes(self) -> int:
        """The most that the engine holds on any one device."""
        return max(self.devices.values(), default=0)

    @property
    def others_bytes(self) -> int | None:
        """The most that anybody else uses of one of these devices; None where no device tells."""
        return max((used - self.devices.get(device, 0) for device, used in self.whole.items()), default=None)
