"""The node that this process runs on: every question of the port, answered from /proc and the NVIDIA driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from ..core.ports import ResidualProbe
from ..core.readings import Process, Reading
from ..core.verdicts import Unmeasurable, Verdict
from .driver import DriverUnavailable, NvmlDriver, Snapshot, driver
from .hook_mode import HookMode, in_use
from .host_memory import available_bytes, biggest_holders, total_bytes
from .in_thread import in_pool, measured
from .listeners import Question, listening_roots
from .nvml import PROC_FS, NvmlProbe, other_holders
from .port import FreeMemory, Kind, ProcessEnv, Scope
from .process_env import env_of, retained_by, shareable, verdict_on
from .process_memory import ProcessMemoryProbe
from .processes import is_alive, none_left
from .shared_scan import SharedAnswers, SharedScan
from .trees import every_process, pids_below

#: The root processes that hosts and ports of URLs reach here.
_LISTENERS: SharedAnswers[Question, tuple[Process, ...]] = SharedAnswers(lambda asked: listening_roots(asked))

#: The bytes of memory that this host or container has left, and those that it has.
_ROOM: SharedScan[tuple[int, int]] = SharedScan(lambda: (available_bytes(), total_bytes()))


class ThisHost:
    """The node that this process runs on. What blocks runs in a thread; one that exceeds its deadline is left behind.

    Who asks at once shares one scan of the sockets, one listing of the processes and one snapshot of the driver; none
    of them began before it was asked for.

    See `port.Node` for what each method returns.
    """

    def __init__(self, nvml: NvmlDriver | None = None) -> None:
        self._driver = nvml or driver()

    async def find(
        self, *, port: int, host: str | None = None, deadline_s: float
    ) -> tuple[Process, ...] | Unmeasurable:
        """Returns the root processes that listen there. All who ask at once share one scan of the host."""
        return await measured(
            _LISTENERS.ask((host, port), deadline_s=deadline_s),
            deadline_s=deadline_s,
            action=f"finding the processes that listen on port {port}",
        )

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
        action = "reading the hook mode of the processes"
        return await measured(self._hook_mode(processes, deadline_s), deadline_s=deadline_s, action=action)

    async def _hook_mode(self, processes: Sequence[Process], deadline_s: float) -> Verdict:
        nvml = await self._driver.taken(deadline_s=deadline_s)  # first, since all who ask at once are still together
        found = await self._env(processes, deadline_s)
        if isinstance(found, Unmeasurable):
            return found
        return await in_pool(lambda: verdict_on(found, nvml=nvml), deadline_s=deadline_s)

    async def process_env(
        self, processes: Sequence[Process], *, deadline_s: float
    ) -> tuple[ProcessEnv, ...] | Unmeasurable:
        """Returns what /proc shows of the environment of the processes."""
        action = "reading the environment of the processes"
        found = await measured(self._env(processes, deadline_s), deadline_s=deadline_s, action=action)
        return found if isinstance(found, Unmeasurable) else shareable(found)

    async def _env(self, processes: Sequence[Process], deadline_s: float) -> tuple[ProcessEnv, ...] | Unmeasurable:
        pids = await pids_below(processes, deadline_s=deadline_s)
        return await in_pool(lambda: env_of(pids), deadline_s=deadline_s) or none_left(processes)

    async def retains_backup(self, processes: Sequence[Process], *, deadline_s: float) -> bool:
        """Returns the same as `retains_backup` of process_env; False where it cannot be told in time."""
        if any(process.agent is not None for process in processes):
            return False
        try:
            pids = await pids_below(processes, deadline_s=deadline_s)
            return await in_pool(lambda: retained_by(pids), deadline_s=deadline_s)
        except TimeoutError:
            return False

    async def mode_in_use(self, mode: HookMode, *, deadline_s: float) -> Verdict:
        """Returns whether the hook mode that this very process uses is safe on the GPUs that it sees."""
        question = in_pool(lambda: in_use(mode, nvml=self._driver), deadline_s=deadline_s)
        return await measured(question, deadline_s=deadline_s, action="reading the GPUs of this process")

    async def free_memory(
        self, devices: Sequence[str], processes: Sequence[Process], *, need_bytes: int, deadline_s: float
    ) -> Mapping[str, FreeMemory] | Unmeasurable:
        """Returns free bytes as the driver gives them; of `host:NAME`, what this host or container has left."""
        question = self._free_memory(devices, processes, need_bytes, deadline_s)
        return await measured(question, deadline_s=deadline_s, action="reading how much memory is free")

    async def _free_memory(
        self, devices: Sequence[str], processes: Sequence[Process], need_bytes: int, deadline_s: float
    ) -> Mapping[str, FreeMemory]:
        """The processes are listed only where others are to be named: of GPUs, and where a host has too little."""
        hosts = [device for device in devices if device.startswith("host:")]
        gpus = [device for device in devices if device not in hosts]
        left, total = await _ROOM.result(deadline_s=deadline_s) if hosts else (need_bytes, 0)
        found = {device: FreeMemory(left, (), total) for device in hosts}
        if left < need_bytes:
            pids = await pids_below(processes, deadline_s=deadline_s)
            every = await every_process(deadline_s=deadline_s)
            for device in hosts:
                holders = await in_pool(partial(biggest_holders, device, pids, every), deadline_s=deadline_s)
                found[device] = FreeMemory(left, holders, total)
        if gpus:
            snapshot, own = await self._driver.shared_with_trees(tuple(processes), deadline_s=deadline_s)
            found |= await in_pool(lambda: _free_of_gpus(snapshot, gpus, own), deadline_s=deadline_s)
        return found


def _free_of_gpus(snapshot: Snapshot, uuids: Sequence[str], pids: frozenset[int]) -> dict[str, FreeMemory]:
    known = {device.uuid: device for device in snapshot.devices}
    found = {}
    for uuid in uuids:
        device = known.get(uuid)
        if device is None or device.free_bytes is None:
            raise DriverUnavailable(f"the driver does not say how much of {device or uuid} is free")
        found[uuid] = FreeMemory(device.free_bytes, other_holders(snapshot, uuid, pids, PROC_FS), device.total_bytes)
    return found
