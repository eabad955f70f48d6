"""The process table of this host: which processes there are, since when, below which others, and what they hold.

A tree is listed in one of two ways. The kernel names the children of a thread in /proc/PID/task/TID/children, which is
cheap for one small tree; it promises them complete only where no child is reaped meanwhile. So each child is looked at
afterwards: where one has gone, where a thread has ended, or where this way would open more files than there are
processes, the whole table is read instead, which costs one file a process and serves every tree.
Source: kernel documentation, proc, /proc/<pid>/task/<tid>/children; fs/proc/array.c.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple, TypeAlias

import psutil

from ..core.readings import Process
from .clock import host_boot

#: Whether the kernel shows processes in files, and in them the children of each thread.
PROC = os.path.exists("/proc/self/stat")
CHILDREN = os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children")

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

#: Files that the tree of an engine costs at least, by its children: three for each process of one thread.
LEAST_FILES = 6

#: Two readings of one start time differ by less: the kernel counts it in hundredths of a second.
_SAME_START_S = 0.5


#: The processes whose trees are asked for.
Roots: TypeAlias = tuple[Process, ...]


class Entry(NamedTuple):
    """What the kernel says of one process. `ticks` counts from the boot of the host to its start."""

    pid: int
    state: str
    parent: int
    threads: int
    ticks: int
    resident_bytes: int

    @property
    def started_s(self) -> float:
        """When it started, by a clock of this boot of the host that nobody sets.

        The kernel counts from its boot, and psutil adds the time of that: it moves with the wall clock, and a process
        would be another one once the clock was set. What is added here is the same for one boot, another for the next.
        """
        return _boot_s() + self.ticks / _TICKS_A_SECOND

    def is_still(self, process: Process) -> bool:
        """Whether this is that process, and has not ended: a zombie holds no memory and counts as ended."""
        return self.state not in "ZX" and abs(self.started_s - process.start_time) < _SAME_START_S


#: Processes by pid, and the children of each.
Listing: TypeAlias = tuple[Mapping[int, Entry], Mapping[int, Sequence[int]]]


@cache
def _boot_s() -> float:
    """A number of this boot of the host, far from those of others."""
    return int(host_boot()[:6] or "0", 16) * 1e6


def entry(pid: int) -> Entry | None:
    """Returns what the kernel says of this process, from one file; None where there is none."""
    if not PROC:
        return _by_psutil(pid)
    try:
        after_name = content_of(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return None
    if not after_name:
        return None
    # Source: proc(5): state, ppid, num_threads, starttime and rss, which are fields 3, 4, 20, 22 and 24.
    parent, threads, ticks, pages = (int(after_name[field]) for field in (1, 17, 19, 21))
    return Entry(pid, after_name[0].decode(), parent, threads, ticks, pages * _PAGE_BYTES)


def table() -> dict[int, Entry]:
    """Returns every process of this host, by pid: one file each."""
    return {each.pid: each for pid in _pids() if (each := entry(pid)) is not None}


def above(pids: Iterable[int]) -> dict[int, tuple[int, ...]]:
    """Returns the pids of the processes above each of these, its parent first; none where it has ended.

    Each process is looked at once, however many of these are below it.
    """
    seen: dict[int, Entry | None] = {}
    found: dict[int, tuple[int, ...]] = {}
    for pid in pids:
        each, chain = _once(pid, seen), list[int]()
        while each is not None and each.parent:
            parent = _once(each.parent, seen)
            if parent is None or parent.ticks > each.ticks or parent.pid in chain:
                break  # the parent has ended, and its pid is another's
            chain.append(parent.pid)
            each = parent
        found[pid] = tuple(chain)
    return found


def trees(questions: Collection[Roots]) -> dict[Roots, dict[int, Process]]:
    """Returns, for each question, these processes and all below them, by pid; without roots that have ended.

    All questions are answered by one listing. A root whose pid belongs to another process by now has ended.
    """
    pids = {root.pid for roots in questions for root in roots}
    entries, children = _walk(pids) or _all()
    return {roots: _trees_of(roots, entries, children) for roots in questions}


def _trees_of(roots: Roots, entries: Mapping[int, Entry], children: Mapping[int, Sequence[int]]) -> dict[int, Process]:
    found: dict[int, Process] = {}
    for root in roots:
        each = entries.get(root.pid)
        if each is None or not each.is_still(root):
            continue
        found[root.pid] = root
        ahead = [root.pid]
        while ahead:
            for child in (entries[pid] for pid in children.get(ahead.pop(), ()) if pid not in found):
                if child.ticks >= each.ticks:
                    found[child.pid] = Process(root.node, child.pid, child.started_s)
                    ahead.append(child.pid)
    return found


def _all() -> Listing:
    """Every process of this host, and the children of each."""
    entries, children = table(), dict[int, list[int]]()
    for each in entries.values():
        children.setdefault(each.parent, []).append(each.pid)
    return entries, children


def _walk(roots: Collection[int]) -> Listing | None:
    """The trees of these pids, by the children of each thread.

    None where that would open more files than the table has, or may be incomplete: a process or a thread ended
    meanwhile.
    """
    left = len(_pids()) if CHILDREN else 0
    if LEAST_FILES * len(roots) > left:
        return None
    entries = {pid: each for pid in roots if (each := entry(pid)) is not None}
    left -= len(roots)
    children: dict[int, list[int]] = {}
    ahead = list(entries)
    while ahead:
        pid = ahead.pop()
        left -= 1 + entries[pid].threads
        if left < 0:
            return None
        try:
            listed = _children(pid)
        except OSError:
            return None
        if listed is None:
            return None
        left -= len(listed)
        for child in listed:
            each = entry(child)
            if each is None or each.parent != pid:
                return None
            ahead += [child] if child not in entries else []
            entries[child] = each
        children[pid] = listed
    return entries, children


def _children(pid: int) -> list[int] | None:
    """The children of all threads of this process; None where a thread ended and left its own to another."""
    threads = os.listdir(f"/proc/{pid}/task")
    found = [int(child) for thread in threads for child in content_of(f"/proc/{pid}/task/{thread}/children").split()]
    return found if len(threads) == 1 or set(threads) <= set(os.listdir(f"/proc/{pid}/task")) else None


def _once(pid: int, seen: dict[int, Entry | None]) -> Entry | None:
    if pid not in seen:
        seen[pid] = entry(pid)
    return seen[pid]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if PROC else psutil.pids()


def content_of(path: str) -> bytes:
    """Returns the content of a file of /proc, in a third of the time that pathlib takes. Raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = os.read(file, 1 << 14)
        while len(content) and (more := os.read(file, 1 << 14)):
            content += more
        return content
    finally:
        os.close(file)


def _by_psutil(pid: int) -> Entry | None:
    """The same where no kernel shows processes in files."""
    try:
        process = psutil.Process(pid)
        state = "Z" if process.status() == psutil.STATUS_ZOMBIE else "S"
        ticks = round(process.create_time() * _TICKS_A_SECOND)
        return Entry(pid, state, process.ppid(), 1, ticks, process.memory_info().rss)
    except psutil.Error:
        return None
