"""Memory of this host: how much can still be had, under the container's limit too, and who holds the most of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

from ..core.readings import Holder
from .process_memory import named

CGROUP = Path("/sys/fs/cgroup")

#: How many processes are named when there is too little.
NAMED = 3


def available_bytes(cgroup: Path = CGROUP) -> int:
    """Bytes that processes of this host, or of this container, can still take without swapping."""
    free = int(psutil.virtual_memory().available)
    left = _left_in_cgroup(cgroup)
    return free if left is None else min(free, left)


def biggest_holders(device: str, without: frozenset[int]) -> tuple[Holder, ...]:
    """The processes that hold the most memory of this host, the biggest first, beside those of `without`."""
    held = sorted(_resident(without), key=lambda each: -each[1])[:NAMED]
    return tuple(Holder(pid, device, size, named(pid)) for pid, size in held)


def _resident(without: frozenset[int]) -> Iterator[tuple[int, int]]:
    for process in psutil.process_iter(["pid", "memory_info"]):
        info = process.info["memory_info"]
        if info is not None and process.pid not in without:
            yield process.pid, int(info.rss)


def _left_in_cgroup(root: Path) -> int | None:
    """What the container's limit leaves, its page cache counted as free; None where there is no limit.

    Source: kernel documentation, cgroup-v2: memory.max, memory.current, memory.stat; version 1 names beside them.
    """
    for limit, used, stat, idle in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        most, taken = _number(root / limit), _number(root / used)
        if most is not None and taken is not None:
            return max(0, most - taken + _in_stat(root / stat, idle))
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
