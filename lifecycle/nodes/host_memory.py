"""Memory of this host: bytes still available, within the container's limit, and the processes that hold the most."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil

from ..core.readings import Holder
from .process_table import Entry, table
from .processes import command_of

CGROUP = Path("/sys/fs/cgroup")

#: How many processes are named where too little is free.
MAX_HOLDERS = 3

#: Where a memory cgroup keeps its limit, its usage, its statistics, and in those the page cache that can be dropped.
#: Source: kernel documentation, cgroup-v2 and cgroup-v1, memory controller.
_CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def available_bytes(cgroup: Path = CGROUP) -> int:
    """Returns the bytes that processes of this host, or of this container, can still take without swapping."""
    free = int(psutil.virtual_memory().available)
    left = _left_in_cgroup(cgroup)
    return free if left is None else min(free, left)


def total_bytes(cgroup: Path = CGROUP) -> int:
    """Returns the bytes of memory that this host has, or that this container may use where that is less."""
    limits = (_number(cgroup / limit_file) for limit_file, *_ in _CGROUP_FILES)
    return min([int(psutil.virtual_memory().total), *(limit for limit in limits if limit is not None)])


def biggest_holders(
    device: str, without: frozenset[int], among: Mapping[int, Entry] | None = None
) -> tuple[Holder, ...]:
    """Returns the MAX_HOLDERS processes with the most resident memory, largest first, except the pids in `without`.

    `among` is the process table, which is read unless it is given.
    """
    others = (each for each in (table() if among is None else among).values() if each.pid not in without)
    held = sorted(others, key=lambda each: -each.resident_bytes)[:MAX_HOLDERS]
    return tuple(Holder(each.pid, device, each.resident_bytes, command_of(each.pid)) for each in held)


def _left_in_cgroup(root: Path) -> int | None:
    """The bytes that the container's limit leaves, droppable page cache counted as free; None without a limit."""
    for limit_file, usage_file, stat_file, cache in _CGROUP_FILES:
        limit, usage = _number(root / limit_file), _number(root / usage_file)
        if limit is not None and usage is not None:
            return max(0, limit - usage + _in_stat(root / stat_file, cache))
    return None


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _in_stat(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
