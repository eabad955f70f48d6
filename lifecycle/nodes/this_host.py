"""The node that this process runs on: every question of the port, answered from /proc and the NVIDIA driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..core.deadline import Deadline
from ..core.ports import ResidualProbe
from ..core.readings import Process, Reading
from ..core.verdicts import Unmeasurable, Verdict
from .driver import DriverUnavailable, NvmlDriver, driver
from .hook_mode import HookMode, in_use
from .host_memory import available_bytes, biggest_holders, total_bytes
from .in_thread import measure_in_thread
from .nvml import PROC_FS, NvmlProbe, other_holders
from .port import FreeMemory, Kind, ProcessEnv, Scope
from .process_env import hook_mode_verdict, shareable_process_env
from .process_memory import ProcessMemoryProbe
from .processes import is_alive, listeners, pids_of_trees, roots_of
from .shared_scan import SharedScan

#: Who listens on which port of this host.
_LISTENERS = SharedScan(listeners)


class ThisHost:
    """The node that this process runs on. What blocks runs in a thread; one that exceeds its deadline is left behind.

    See `port.Node` for what each method returns.
    """

    def __init__(self, nvml: NvmlDriver | None = None) -> None:
        self._driver = nvml or driver()

    async def find(self, *, port: int, deadline_s: float) -> tuple[Process, ...] | Unmeasurable:
        """Returns the root processes that listen on this port here. All who ask at once share one scan of the host."""
        action, clock = f"finding the processes that listen on port {port}", Deadline(deadline_s)
        try:
            found = await _LISTENERS.result(deadline_s=clock.left_s)
        except TimeoutError:
            return Unmeasurable(reason=f"{action} took more than {deadline_s:.1f} s")
        pids = found.get(port, frozenset())
        return await measure_in_thread(lambda: roots_of(pids), deadline_s=clock.left_s, action=action) if pids else ()

    async def any_alive(self, processes: Sequence[Process], *, deadline_s: float) -> bool | None:
        """Returns whether any of these processes still exists; never None here."""
        return any(is_alive(process) for process in processes)

    async def read(
        self, processes: Sequence[Process], *, kind: Kind, scope: Scope, deadline_s: float
    ) -> Reading | Unmeasurable:
        """Returns the bytes that the trees hold: of GPUs by the driver, of the host by /proc (`scope` is ignored)."""
        probe: ResidualProbe = NvmlProbe(scope=scope, nvml=self._driver) if kind == "cuda" else ProcessMemoryProbe()
        return await probe.read(processes, deadline_s=deadline_s)

    async def hook_mode(self, processes: Sequence[Process], *, deadline_s: float) -> Verdict:
        """Returns the verdict on the environment of the processes and the GPUs that the driver shows."""
        return await measure_in_thread(
            lambda: hook_mode_verdict(processes, nvml=self._driver),
            deadline_s=deadline_s,
            action="reading the hook mode of the processes",
        )

    async def process_env(
        self, processes: Sequence[Process], *, deadline_s: float
    ) -> tuple[ProcessEnv, ...] | Unmeasurable:
        """Returns what /proc shows of the environment of the processes."""
        action = "reading the environment of the processes"
        return await measure_in_thread(lambda: shareable_process_env(processes), deadline_s=deadline_s, action=action)

    async def mode_in_use(self, mode: HookMode, *, deadline_s: float) -> Verdict:
        """Returns whether the hook mode that this very process uses is safe on the GPUs that it sees."""
        action = "reading the GPUs of this process"
        return await measure_in_thread(lambda: in_use(mode, nvml=self._driver), deadline_s=deadline_s, action=action)

    async def free_memory(
        self, devices: Sequence[str], processes: Sequence[Process], *, need_bytes: int, deadline_s: float
    ) -> Mapping[str, FreeMemory] | Unmeasurable:
        """Returns free bytes as the driver gives them; of `host:NAME`, what this host or container has left."""
        return await measure_in_thread(
            lambda: self._free_memory(devices, pids_of_trees(processes), need_bytes),
            deadline_s=deadline_s,
            action="reading how much memory is free",
        )

    def _free_memory(self, devices: Sequence[str], pids: frozenset[int], need_bytes: int) -> Mapping[str, FreeMemory]:
        found: dict[str, FreeMemory] = {}
        for device in devices:
            if device.startswith("host:"):
                left = available_bytes()
                holders = biggest_holders(device, pids) if left < need_bytes else ()
                found[device] = FreeMemory(left, holders, total_bytes())
        gpus = [device for device in devices if device not in found]
        return {**found, **self._free_of_gpus(gpus, pids)} if gpus else found

    def _free_of_gpus(self, uuids: Sequence[str], pids: frozenset[int]) -> Mapping[str, FreeMemory]:
        snapshot = self._driver.snapshot()
        known = {device.uuid: device for device in snapshot.devices}
        found = {}
        for uuid in uuids:
            device = known.get(uuid)
            if device is None or device.free_bytes is None:
                raise DriverUnavailable(f"the driver does not say how much of {device or uuid} is free")
            found[uuid] = FreeMemory(
                device.free_bytes, other_holders(snapshot, uuid, pids, PROC_FS), device.total_bytes
            )
        return found
