"""GPU memory by process, from the NVIDIA driver: what an engine's tree holds on every device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.readings import Holder, Process, Reading
from ..core.verdicts import Unmeasurable
from .driver import Device, DriverUnavailable, NvmlDriver, Snapshot, Use, driver
from .in_thread import in_thread
from .process_memory import named, tree
from .processes import here

Scope = Literal["process", "device"]

#: What lets a container see the numbers that the driver uses for processes.
SEE_PIDS = (
    "run this process in the host's pid namespace (docker: --pid=host; Kubernetes: hostPID: true), "
    "or run `lifecycle agent` on the node and give the engine's URL agent=HOST:PORT"
)


@dataclass(frozen=True, slots=True)
class Host:
    """What /proc tells: the numbers of a process in the namespaces below ours, whether one exists, its command."""

    numbers: Callable[[int], tuple[int, ...]]
    exists: Callable[[int], bool]
    command: Callable[[int], str]


def pid_numbers(pid: int) -> tuple[int, ...]:
    """The pid of this process in our namespace and in each below it. Source: proc(5), NSpid."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return tuple(int(number) for number in line.split()[1:])
    except OSError:
        pass
    return (pid,)


THIS_HOST = Host(pid_numbers, lambda pid: Path(f"/proc/{pid}").exists(), named)


class NvmlProbe:
    """Sums what an engine's processes hold inside each device; `scope="device"` takes all that is used there."""

    def __init__(self, *, scope: Scope = "process", nvml: NvmlDriver | None = None, host: Host = THIS_HOST) -> None:
        self._scope = scope
        self._driver = nvml or driver()
        self._host = host

    async def read(self, processes: Sequence[Process], *, deadline_s: float) -> Reading | Unmeasurable:
        """What the trees hold now, asked in a thread. Unmeasurable names what would help."""
        try:
            return await in_thread(lambda: self.read_now(processes), deadline_s=deadline_s)
        except TimeoutError:
            return Unmeasurable(reason=f"the NVIDIA driver gave no answer in {deadline_s:.1f} s")

    def read_now(self, processes: Sequence[Process]) -> Reading | Unmeasurable:
        """`read`, on the thread of the caller."""
        away = [process for process in processes if process.node != here()]
        if away:
            return Unmeasurable(reason=f"pid {away[0].pid} runs on {away[0].node}; give its URL agent=HOST:PORT")
        before = {pid for process in processes for pid in tree(process)}
        try:
            snapshot = self._driver.snapshot()
        except DriverUnavailable as error:
            return Unmeasurable(reason=str(error))
        # A process that was born or ended meanwhile is looked for under both readings of the tree.
        pids = before | {pid for process in processes for pid in tree(process)}
        if not pids:
            told = ", ".join(str(process.pid) for process in processes) or "none known"
            return Unmeasurable(reason=f"no process of the engine is left to measure (pids: {told})")
        return measure(snapshot, frozenset(pids), self._host, self._scope)


def measure(snapshot: Snapshot, pids: frozenset[int], host: Host, scope: Scope = "process") -> Reading | Unmeasurable:
    """What these processes hold on every device, summed inside it; never 0 where none of them was found."""
    ours = _numbered(snapshot, pids, host)
    held: dict[str, list[Holder]] = {}
    for device in snapshot.devices:
        mine = [use for use in snapshot.uses.get(device.uuid, ()) if use.pid in ours]
        silent = [use for use in mine if use.used_bytes is None]
        if silent and scope == "process":
            return Unmeasurable(reason=_no_figure(silent[0], device))
        if mine:
            held[device.uuid] = [_holder(use, ours[use.pid], device, host) for use in mine]
    if not held:
        return Unmeasurable(reason=_nobody(snapshot, pids, host))
    whole = {uuid: used for uuid in held if (used := snapshot.device(uuid).used_bytes) is not None}
    if scope == "device":
        return _of_devices(snapshot, held, whole, host)
    sums = {uuid: sum(each.resident_bytes for each in holders) for uuid, holders in held.items()}
    return Reading(sums, tuple(holder for each in held.values() for holder in each), "NVML by process", whole)


def others(snapshot: Snapshot, uuid: str, pids: frozenset[int], host: Host) -> tuple[Holder, ...]:
    """Who holds memory of this device beside these processes, the biggest first."""
    ours = _numbered(snapshot, pids, host)
    device = snapshot.device(uuid)
    uses = [use for use in snapshot.uses.get(uuid, ()) if use.pid not in ours]
    holders = [_holder(use, use.pid, device, host) for use in uses]
    return tuple(sorted(holders, key=lambda holder: -holder.resident_bytes))


def _numbered(snapshot: Snapshot, pids: frozenset[int], host: Host) -> dict[int, int]:
    """The driver's number for each of our processes that it lists, and ours for it.

    A number that /proc has not may be that of a process of ours in the namespace of its container.
    """
    listed = {use.pid for uses in snapshot.uses.values() for use in uses}
    found = {pid: pid for pid in pids & listed}
    hidden = {pid for pid in listed - pids if not host.exists(pid)}
    for pid in sorted(pids - set(found)) if hidden else ():
        found |= dict.fromkeys(set(host.numbers(pid)[1:]) & hidden, pid)
    return found


def _of_devices(
    snapshot: Snapshot, held: Mapping[str, list[Holder]], whole: Mapping[str, int], host: Host
) -> Reading | Unmeasurable:
    """Everything that is used on the devices where the engine is, whoever holds it."""
    for uuid in held:
        if uuid not in whole:
            return Unmeasurable(reason=f"the driver does not say how much of {snapshot.device(uuid)} is used")
    everybody = tuple(holder for uuid in held for holder in others(snapshot, uuid, frozenset(), host))
    return Reading(whole, everybody, "NVML by device", whole)


def _holder(use: Use, pid: int, device: Device, host: Host) -> Holder:
    return Holder(pid, device.uuid, use.used_bytes or 0, host.command(pid))


def _no_figure(use: Use, device: Device) -> str:
    return (
        f"the driver gives no figure (N/A) for pid {use.pid} on {device}; "
        'measure the whole device instead (residual_scope="device")'
    )


def _nobody(snapshot: Snapshot, pids: frozenset[int], host: Host) -> str:
    """Why none of these processes was found on a device."""
    told = f"pids {', '.join(str(pid) for pid in sorted(pids)[:8])}"
    if not snapshot.devices:
        return f"the driver shows no device; {told} cannot hold GPU memory here"
    if snapshot.refused:
        return next(iter(snapshot.refused.values()))
    hidden = {use.pid for uses in snapshot.uses.values() for use in uses if not host.exists(use.pid)}
    if hidden:
        shown = ", ".join(str(pid) for pid in sorted(hidden)[:4])
        return f"none of {told} is listed, and the driver lists pids that are hidden here ({shown}): {SEE_PIDS}"
    used = any((device.used_bytes or 0) > (1 << 30) for device in snapshot.devices)
    listed = any(snapshot.uses.values())
    if used and not listed:
        return f"memory is used and the driver lists no process at all: {SEE_PIDS}"
    return f"none of {told} holds memory of any of the {len(snapshot.devices)} devices that the driver shows"
