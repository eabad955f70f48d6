"""`python tokenspeed_likeness.py REAL LOOPBACK`: as `likeness.py`, of what `tokenspeed_record.py` left."""

from __future__ import annotations

import sys
from pathlib import Path

from likeness import Difference
from likeness import verdict as compared

DIFFERENCES: tuple[Difference, ...] = ()


def verdict(real: Path, ours: Path) -> tuple[list[str], bool]:
    """The lines to print, the summary last, and whether loopback is like tokenspeed's control plane."""
    return compared(real, ours, "tokenspeed", DIFFERENCES)


if __name__ == "__main__":
    lines, alike = verdict(Path(sys.argv[1]), Path(sys.argv[2]))
    print("\n".join(lines))
    sys.exit(not alike)
