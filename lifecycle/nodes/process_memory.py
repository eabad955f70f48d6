"""Process memory: the proportional set size of an engine's process tree, for engines whose device is the host."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

import psutil

from ..core.readings import Holder, Process, Reading
from ..core.verdicts import Unmeasurable


class ProcessMemoryProbe:
    """Sums PSS over the tree: a page that two processes share is counted once. The device is this host."""

    async def read(self, processes: Sequence[Process], *, deadline_s: float) -> Reading | Unmeasurable:
        """What the trees hold now, read in a thread: one smaps_rollup takes milliseconds per GiB."""
        try:
            async with asyncio.timeout(deadline_s):
                return await asyncio.to_thread(read_trees, processes)
        except TimeoutError:
            return Unmeasurable(reason=f"/proc gave no memory figure in {deadline_s:.1f} s")


def read_trees(processes: Sequence[Process]) -> Reading | Unmeasurable:
    """The PSS of every process below `processes`, or why it cannot be read."""
    here = socket.gethostname()
    away = [process for process in processes if process.node != here]
    if away:
        return Unmeasurable(reason=f"pid {away[0].pid} runs on {away[0].node}; process memory is read on its own host")
    holders, problem = [], ""
    for pid in sorted({pid for root in processes for pid in tree(root)}):
        try:
            holders.append(Holder(pid, f"host:{here}", pss_bytes(pid), command_of(pid)))
        except PermissionError:
            problem = f"pid {pid} belongs to another user; run as that user or as root"
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended between the listing and the reading
    if problem:
        return Unmeasurable(reason=problem)
    if not holders:
        pids = ", ".join(str(process.pid) for process in processes) or "none known"
        return Unmeasurable(reason=f"no process of the engine is left to measure (pids: {pids})")
    return Reading({f"host:{here}": sum(each.resident_bytes for each in holders)}, tuple(holders), "process memory")


def tree(root: Process) -> set[int]:
    """The pids of this process and all below it; empty when it ended or its pid belongs to another by now."""
    try:
        process = psutil.Process(root.pid)
        if not same_start(process.create_time(), root.start_time) or process.status() == psutil.STATUS_ZOMBIE:
            return set()
        return {process.pid, *(child.pid for child in process.children(recursive=True))}
    except psutil.NoSuchProcess:
        return set()


def alive(process: Process) -> bool:
    """Whether this very process still exists; a zombie holds nothing and counts as ended."""
    try:
        found = psutil.Process(process.pid)
        return same_start(found.create_time(), process.start_time) and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def same_start(one_s: float, other_s: float) -> bool:
    """Whether two start times are of one process: the kernel counts them in hundredths of a second."""
    return abs(one_s - other_s) < 0.5


def pss_bytes(pid: int) -> int:
    """Bytes of the process, shared pages divided among those that map them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)  # a process that is exiting has an empty rollup


def command_of(pid: int) -> str:
    """The command line's first words, for messages."""
    raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    return " ".join(part.decode(errors="replace") for part in raw.split(b"\0")[:4] if part)[:80]


def named(pid: int) -> str:
    """`command_of`, of a process that may be hidden from here or ended."""
    try:
        return command_of(pid) or "no command line"
    except OSError:
        return "not visible from here"
