"""The host that this process runs on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..core.ports import ResidualProbe
from ..core.readings import Process, Reading
from ..core.verdicts import Unmeasurable, Verdict
from .driver import DriverUnavailable, NvmlDriver, driver
from .hook_mode import HookMode, in_use
from .host_memory import available_bytes, biggest_holders
from .in_thread import in_thread
from .nvml import THIS_HOST, NvmlProbe, Scope, others
from .port import Free, Kind
from .process_env import Launched, hook_mode_verdict, told_of
from .process_memory import ProcessMemoryProbe, alive, tree
from .processes import listening_on


class ThisHost:
    """The host that this process runs on."""

    def __init__(self, nvml: NvmlDriver | None = None) -> None:
        self._driver = nvml or driver()

    async def find(self, *, port: int, deadline_s: float) -> tuple[Process, ...] | Unmeasurable:
        """The topmost processes that listen on this port here."""
        try:
            return await in_thread(lambda: listening_on(port), deadline_s=deadline_s)
        except TimeoutError:
            return Unmeasurable(reason=f"the listening processes were not found in {deadline_s:.1f} s")

    async def any_alive(self, processes: Sequence[Process], *, deadline_s: float) -> bool | None:
        """Whether any of these very processes still exists."""
        return any(alive(process) for process in processes)

    async def read(
        self, processes: Sequence[Process], *, kind: Kind, scope: Scope, deadline_s: float
    ) -> Reading | Unmeasurable:
        """What the trees below these processes hold: by the driver, or of this host's memory."""
        probe: ResidualProbe = NvmlProbe(scope=scope, nvml=self._driver) if kind == "cuda" else ProcessMemoryProbe()
        return await probe.read(processes, deadline_s=deadline_s)

    async def hook_mode(self, processes: Sequence[Process], *, deadline_s: float) -> Verdict:
        """Read from the environment of the processes, and from the driver."""
        try:
            return await in_thread(lambda: hook_mode_verdict(processes, nvml=self._driver), deadline_s=deadline_s)
        except TimeoutError:
            return Unmeasurable(reason=f"the hook mode was not found out in {deadline_s:.1f} s")

    async def launched(self, processes: Sequence[Process], *, deadline_s: float) -> tuple[Launched, ...] | Unmeasurable:
        """Read from the environment of the processes."""
        try:
            return await in_thread(lambda: told_of(processes), deadline_s=deadline_s)
        except TimeoutError:
            return Unmeasurable(reason=f"how they were started was not found out in {deadline_s:.1f} s")

    async def mode_in_use(self, mode: HookMode, *, deadline_s: float) -> Verdict:
        """Whether the hook mode that this very process uses is safe on its GPUs."""
        try:
            return await in_thread(lambda: in_use(mode, nvml=self._driver), deadline_s=deadline_s)
        except TimeoutError:
            return Unmeasurable(reason=f"the GPUs of this process were not found out in {deadline_s:.1f} s")

    async def free(
        self, devices: Sequence[str], processes: Sequence[Process], *, need_bytes: int, deadline_s: float
    ) -> Mapping[str, Free] | Unmeasurable:
        """Free bytes by the driver; of `host:...`, what this host or this container has left."""
        try:
            return await in_thread(lambda: self._free(devices, processes, need_bytes), deadline_s=deadline_s)
        except TimeoutError:
            return Unmeasurable(reason=f"nobody said in {deadline_s:.1f} s how much memory is free")
        except DriverUnavailable as error:
            return Unmeasurable(reason=str(error))

    def _free(self, devices: Sequence[str], processes: Sequence[Process], need_bytes: int) -> Mapping[str, Free]:
        pids = frozenset(pid for process in processes for pid in tree(process))
        found: dict[str, Free] = {}
        for device in devices:
            if device.startswith("host:"):
                left = available_bytes()
                found[device] = Free(left, biggest_holders(device, pids) if left < need_bytes else ())
        gpus = [device for device in devices if device not in found]
        return {**found, **self._free_of_gpus(gpus, pids)} if gpus else found

    def _free_of_gpus(self, uuids: Sequence[str], pids: frozenset[int]) -> Mapping[str, Free]:
        snapshot = self._driver.snapshot()
        known = {device.uuid: device for device in snapshot.devices}
        found = {}
        for uuid in uuids:
            device = known.get(uuid)
            if device is None or device.free_bytes is None:
                raise DriverUnavailable(f"the driver does not say how much of {device or uuid} is free")
            found[uuid] = Free(device.free_bytes, others(snapshot, uuid, pids, THIS_HOST))
        return found
