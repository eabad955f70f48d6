"""Measures the memory of one tenant: that of the process, less the mapped regions of the process's other tenants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lifecycle.core.ports import ResidualProbe
from lifecycle.core.readings import Process, Reading
from lifecycle.core.units import mib
from lifecycle.core.verdicts import Unmeasurable

from .saver import Tags, cotenants


class TenantProbe:
    """Reads the process's memory and subtracts what its other tenants have mapped in regions on the same device."""

    def __init__(self, process: ResidualProbe, tags: Tags) -> None:
        self._process = process
        self._tags = tags

    async def read(self, processes: Sequence[Process], *, deadline_s: float) -> Reading | Unmeasurable:
        """The process's reading, with the mapped regions of other tenants subtracted on this tenant's device."""
        reading = await self._process.read(processes, deadline_s=deadline_s)
        others = sum(each.mapped_bytes() for each in cotenants(self._tags))
        if isinstance(reading, Unmeasurable) or not others:
            return reading
        key = self._device(reading)
        devices = {**reading.devices, key: max(0, reading.devices.get(key, 0) - others)}
        probe = f"{reading.probe}, less {mib(others)} of other tenants of this process"
        return replace(reading, devices=devices, probe=probe)

    def _device(self, reading: Reading) -> str:
        return next(iter(reading.devices)) if len(reading.devices) == 1 else self._tags.backend.device_key()
