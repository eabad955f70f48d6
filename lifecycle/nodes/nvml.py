"""GPU memory by process, from the NVIDIA driver: the bytes that an engine's process trees hold on every device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.readings import Holder, Process, Reading
from ..core.units import GIB
from ..core.verdicts import Unmeasurable
from .driver import Device, DriverUnavailable, NvmlDriver, ProcessUsage, Snapshot, driver
from .in_thread import in_pool, measured
from .port import Scope
from .processes import command_of, none_left, on_other_node

#: What lets a container see the pids that the driver uses for processes.
SEE_PIDS = (
    "run this process in the host's pid namespace (docker: --pid=host; Kubernetes: hostPID: true), "
    "or run `lifecycle agent` on the node and give the engine's URL agent=HOST:PORT"
)


@dataclass(frozen=True, slots=True)
class ProcFs:
    """What /proc says of a pid: its pids in our namespace and those below, whether it exists, its command line."""

    namespace_pids: Callable[[int], tuple[int, ...]]
    exists: Callable[[int], bool]
    command: Callable[[int], str]


def namespace_pids(pid: int) -> tuple[int, ...]:
    """Returns the pid of this process in our namespace and in each namespace below it. Source: proc(5), NSpid."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return tuple(int(number) for number in line.split()[1:])
    except OSError:
        pass
    return (pid,)


PROC_FS = ProcFs(namespace_pids, lambda pid: Path(f"/proc/{pid}").exists(), command_of)


class NvmlProbe:
    """Sums the bytes that an engine's processes hold on each device, or all that is used there (`scope="device"`)."""

    def __init__(self, *, scope: Scope = "process", nvml: NvmlDriver | None = None, proc_fs: ProcFs = PROC_FS) -> None:
        self._scope = scope
        self._driver = nvml or driver()
        self._proc_fs = proc_fs

    async def read(self, processes: Sequence[Process], *, deadline_s: float) -> Reading | Unmeasurable:
        """Returns what the trees hold now, read in a thread; Unmeasurable says what would help."""
        action = "reading GPU memory from the NVIDIA driver"
        return await measured(self._read(processes, deadline_s), deadline_s=deadline_s, action=action)

    async def _read(self, processes: Sequence[Process], deadline_s: float) -> Reading | Unmeasurable:
        away = on_other_node(processes)
        if away is not None:
            return away
        snapshot, pids = await self._driver.shared_with_trees(tuple(processes), deadline_s=deadline_s)
        return await in_pool(lambda: self._measured(snapshot, pids, processes), deadline_s=deadline_s)

    def read_now(self, processes: Sequence[Process]) -> Reading | Unmeasurable:
        """Returns the same as `read`, and blocks the caller's thread while the driver is queried."""
        away = on_other_node(processes)
        if away is not None:
            return away
        roots = tuple(processes)
        try:
            snapshot, pids = self._driver.with_trees([roots])[roots]
        except DriverUnavailable as error:
            return Unmeasurable(reason=str(error))
        return self._measured(snapshot, pids, processes)

    def _measured(
        self, snapshot: Snapshot, pids: frozenset[int], processes: Sequence[Process]
    ) -> Reading | Unmeasurable:
        return measure(snapshot, pids, self._proc_fs, self._scope) if pids else none_left(processes)


def measure(
    snapshot: Snapshot, pids: frozenset[int], proc_fs: ProcFs, scope: Scope = "process"
) -> Reading | Unmeasurable:
    """Returns the bytes that these processes hold on each device; Unmeasurable, never 0, where none is listed."""
    own_pids = _driver_pids(snapshot, pids, proc_fs)
    held: dict[str, list[Holder]] = {}
    for device in snapshot.devices:
        own = [usage for usage in snapshot.usages.get(device.uuid, ()) if usage.pid in own_pids]
        without_figure = [usage for usage in own if usage.used_bytes is None]
        if without_figure and scope == "process":
            return Unmeasurable(reason=_no_figure(without_figure[0], device))
        if own:
            held[device.uuid] = [_holder(usage, own_pids[usage.pid], device, proc_fs) for usage in own]
    if not held:
        return _none_listed(snapshot, pids, proc_fs)
    whole = {uuid: used for uuid in held if (used := snapshot.device(uuid).used_bytes) is not None}
    if scope == "device":
        return _whole_devices(snapshot, held, whole, proc_fs)
    sums = {uuid: sum(each.resident_bytes for each in holders) for uuid, holders in held.items()}
    return Reading(sums, tuple(holder for each in held.values() for holder in each), "NVML by process", whole)


def other_holders(snapshot: Snapshot, uuid: str, pids: frozenset[int], proc_fs: ProcFs) -> tuple[Holder, ...]:
    """Returns the processes other than these that hold memory of this device, largest first."""
    own_pids = _driver_pids(snapshot, pids, proc_fs)
    device = snapshot.device(uuid)
    others = [usage for usage in snapshot.usages.get(uuid, ()) if usage.pid not in own_pids]
    holders = [_holder(usage, usage.pid, device, proc_fs) for usage in others]
    return tuple(sorted(holders, key=lambda holder: -holder.resident_bytes))


def _driver_pids(snapshot: Snapshot, pids: frozenset[int], proc_fs: ProcFs) -> dict[int, int]:
    """Maps the pid that the driver lists for each of these processes to the pid that it has here.

    A listed pid that /proc does not have may be the pid of one of these processes in its container's namespace.
    """
    listed = {usage.pid for usages in snapshot.usages.values() for usage in usages}
    found = {pid: pid for pid in pids & listed}
    hidden = {pid for pid in listed - pids if not proc_fs.exists(pid)}
    for pid in sorted(pids - set(found)) if hidden else ():
        found |= dict.fromkeys(set(proc_fs.namespace_pids(pid)[1:]) & hidden, pid)
    return found


def _whole_devices(
    snapshot: Snapshot, held: Mapping[str, list[Holder]], whole: Mapping[str, int], proc_fs: ProcFs
) -> Reading | Unmeasurable:
    """All that is used, by any process, of the devices on which the engine is."""
    for uuid in held:
        if uuid not in whole:
            return Unmeasurable(reason=f"the driver does not say how much of {snapshot.device(uuid)} is used")
    holders = tuple(holder for uuid in held for holder in other_holders(snapshot, uuid, frozenset(), proc_fs))
    return Reading(whole, holders, "NVML by device", whole)


def _holder(usage: ProcessUsage, pid: int, device: Device, proc_fs: ProcFs) -> Holder:
    return Holder(pid, device.uuid, usage.used_bytes or 0, proc_fs.command(pid))


def _no_figure(usage: ProcessUsage, device: Device) -> str:
    return (
        f"the driver gives no figure (N/A) for pid {usage.pid} on {device}; "
        'measure the whole device instead (residual_scope="device")'
    )


def _none_listed(snapshot: Snapshot, pids: frozenset[int], proc_fs: ProcFs) -> Unmeasurable:
    """Why the driver lists none of these processes on any device, and what would help.

    Where it lists every process that holds memory, and these are not among them, the figure `resident_bytes` is 0: of
    an engine that is no measure, since an engine holds some, but of a process that may hold none it is.
    """
    why = _why_hidden(snapshot, pids, proc_fs)
    if why is not None:
        return Unmeasurable(reason=why)
    named = f"pids {', '.join(str(pid) for pid in sorted(pids)[:8])}"
    reason = f"none of {named} holds memory of any of the {len(snapshot.devices)} devices that the driver shows"
    return Unmeasurable(reason=reason, figures={"resident_bytes": 0})


def _why_hidden(snapshot: Snapshot, pids: frozenset[int], proc_fs: ProcFs) -> str | None:
    """Why these processes may hold memory of a device and not be listed; None where they would be."""
    named = f"pids {', '.join(str(pid) for pid in sorted(pids)[:8])}"
    if not snapshot.devices:
        return f"the driver shows no device; {named} cannot hold GPU memory here"
    if snapshot.refused:
        return next(iter(snapshot.refused.values()))
    hidden = {usage.pid for usages in snapshot.usages.values() for usage in usages if not proc_fs.exists(usage.pid)}
    if hidden:
        shown = ", ".join(str(pid) for pid in sorted(hidden)[:4])
        return f"none of {named} is listed, and the driver lists pids that are hidden here ({shown}): {SEE_PIDS}"
    used = any((device.used_bytes or 0) > GIB for device in snapshot.devices)
    if used and not any(snapshot.usages.values()):
        return f"memory is used and the driver lists no process at all: {SEE_PIDS}"
    return None
