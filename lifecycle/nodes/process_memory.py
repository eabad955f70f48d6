"""Memory of processes: the proportional set size of process trees, for engines whose device is the host."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..core.readings import Holder, Process, Reading
from ..core.verdicts import Unmeasurable
from .in_thread import in_pool, measured
from .process_table import content_of
from .processes import command_of, node_name, none_left, of_other_user, on_other_node, pids_of_trees
from .trees import pids_below


class ProcessMemoryProbe:
    """Sums the PSS of process trees: a page that several processes share is counted once. The device is this host."""

    async def read(self, processes: Sequence[Process], *, deadline_s: float) -> Reading | Unmeasurable:
        """Returns what the trees hold now. It is read in a thread: one smaps_rollup takes milliseconds per GiB.

        Who asks for the same processes before that has begun shares it.
        """
        return await measured(
            _read(processes, deadline_s), deadline_s=deadline_s, action="reading process memory from /proc"
        )


async def _read(processes: Sequence[Process], deadline_s: float) -> Reading | Unmeasurable:
    away = on_other_node(processes)
    if away is not None:
        return away
    pids = await pids_below(processes, deadline_s=deadline_s)
    if not pids:
        return none_left(processes)
    return await in_pool(lambda: _weighed(pids), deadline_s=deadline_s, key=pids) or none_left(processes)


def read_trees(processes: Sequence[Process]) -> Reading | Unmeasurable:
    """Returns the PSS of every process of these trees, in bytes, or why it cannot be read."""
    return on_other_node(processes) or _weighed(pids_of_trees(processes)) or none_left(processes)


def _weighed(pids: Collection[int]) -> Reading | Unmeasurable | None:
    """The PSS of these processes, each read once; None where all have ended."""
    device, holders, problem = f"host:{node_name()}", [], None
    for pid in sorted(pids):
        try:
            holders.append(Holder(pid, device, pss_bytes(pid), command_of(pid)))
        except PermissionError:
            problem = of_other_user(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended between the listing and the reading
    if problem is not None:
        return problem
    if not holders:
        return None
    return Reading({device: sum(each.resident_bytes for each in holders)}, tuple(holders), "process memory")


def pss_bytes(pid: int) -> int:
    """Returns the bytes of this process, each shared page divided by the number of processes that map it.

    Raises PermissionError for a process of another user, FileNotFoundError or ProcessLookupError if it ended.
    """
    for line in content_of(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)  # a process that is exiting has an empty rollup
