"""Memory of processes: the proportional set size of process trees, for engines whose device is the host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core.readings import Holder, Process, Reading
from ..core.verdicts import Unmeasurable
from .in_thread import measure_in_thread
from .processes import command_of, node_name, none_left, of_other_user, on_other_node, pids_of_trees


class ProcessMemoryProbe:
    """Sums the PSS of process trees: a page that several processes share is counted once. The device is this host."""

    async def read(self, processes: Sequence[Process], *, deadline_s: float) -> Reading | Unmeasurable:
        """Returns what the trees hold now. It is read in a thread: one smaps_rollup takes milliseconds per GiB."""
        action = "reading process memory from /proc"
        return await measure_in_thread(lambda: read_trees(processes), deadline_s=deadline_s, action=action)


def read_trees(processes: Sequence[Process]) -> Reading | Unmeasurable:
    """Returns the PSS of every process of these trees, in bytes, or why it cannot be read."""
    away = on_other_node(processes)
    if away is not None:
        return away
    device, holders, problem = f"host:{node_name()}", [], None
    for pid in sorted(pids_of_trees(processes)):
        try:
            holders.append(Holder(pid, device, pss_bytes(pid), command_of(pid)))
        except PermissionError:
            problem = of_other_user(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended between the listing and the reading
    if problem is not None:
        return problem
    if not holders:
        return none_left(processes)
    return Reading({device: sum(each.resident_bytes for each in holders)}, tuple(holders), "process memory")


def pss_bytes(pid: int) -> int:
    """Returns the bytes of this process, each shared page divided by the number of processes that map it.

    Raises PermissionError for a process of another user, FileNotFoundError or ProcessLookupError if it ended.
    """
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)  # a process that is exiting has an empty rollup
