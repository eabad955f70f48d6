"""Units of memory, and how sizes are written in messages."""

from __future__ import annotations

GIB = 1 << 30
MIB = 1 << 20


def mib(size_bytes: float) -> str:
    """A size in whole mebibytes, as in `384 MiB`."""
    return f"{round(size_bytes / MIB)} MiB"


def gib(size_bytes: float) -> str:
    """A size in gibibytes with two decimals, as in `1.81 GiB`."""
    return f"{size_bytes / GIB:.2f} GiB"
