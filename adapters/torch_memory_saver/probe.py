"""What one tenant of this process holds: the process's residual, less the regions of the tenants beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lifecycle.core.ports import ResidualProbe
from lifecycle.core.readings import Process, Reading
from lifecycle.core.verdicts import Unmeasurable

from .saver import Tags, cotenants


class ProbeOfTenant:
    """Measures the process, and takes off what its other tenants' regions on this device hold mapped."""

    def __init__(self, process: ResidualProbe, tags: Tags) -> None:
        self._process = process
        self._tags = tags

    async def read(self, processes: Sequence[Process], *, deadline_s: float) -> Reading | Unmeasurable:
        """The reading of the process, in which this tenant's device has only what is not a co-tenant's."""
        reading = await self._process.read(processes, deadline_s=deadline_s)
        others = sum(each.mapped_bytes() for each in cotenants(self._tags))
        if isinstance(reading, Unmeasurable) or not others:
            return reading
        key = self._device(reading)
        devices = {**reading.devices, key: max(0, reading.devices.get(key, 0) - others)}
        probe = f"{reading.probe}, less {others >> 20} MiB of other tenants of this process"
        return replace(reading, devices=devices, probe=probe)

    def _device(self, reading: Reading) -> str:
        return next(iter(reading.devices)) if len(reading.devices) == 1 else self._tags.backend.device_key()
