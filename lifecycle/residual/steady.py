"""A figure that is believed only once it no longer falls: memory comes back after the call that returns it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..adapter import Process
from ..deadline import Deadline
from ..verdicts import Unmeasurable
from . import Reading, ResidualProbe

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
