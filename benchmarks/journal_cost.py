"""What writing things down costs: cycles of one loopback engine with the store and its journal, and without.

    python benchmarks/journal_cost.py [--cycles 20] [--write docs/measured/journal.md]

Both ways alternate in one run, on one engine. The figure that is compared is the ratio of their medians.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import Fleet, Kept, Policy
from lifecycle.core.journal import BarrierReturned, Entry
from lifecycle.core.record import Record
from lifecycle.store.journal import read_file
from lifecycle.store.leases import Leases
from lifecycle.store.sqlite import Store

POLICY = Policy(residual_threshold_gib=0.125, poll_s=0.01)


class RowsAlone:
    """A store without its journal."""

    def __init__(self, store: Store) -> None:
        self.path = store.path
        self._store = store

    def save(self, engine: str, record: Record) -> None:
        self._store.save(engine, record)

    def load(self, engine: str) -> Record | None:
        return self._store.load(engine)


async def cycle_s(url: str, way: str, folder: Path) -> float:
    """Seconds of an offload and an onload by a fleet that is connected already."""
    path = folder / way / "engines.sqlite3"
    kept = None if way == "nothing" else Store(path)
    lease = None if way == "nothing" else Leases(path)
    store = RowsAlone(kept) if kept is not None and way == "rows" else kept
    async with Fleet.connect([url], policy=POLICY, store=store, lease=lease) as fleet:
        begun = time.perf_counter()
        await fleet.offload(weights=Kept())
        await fleet.onload()
        took_s = time.perf_counter() - begun
    if kept is not None:
        kept.close()
    return took_s


async def measure(cycles: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of each cycle, by what is written, in turns."""
    took: dict[str, list[float]] = {"nothing": [], "rows": [], "rows and journal": []}
    with LoopbackProcess.start(weights_mib=96, kv_mib=96, weights_backup=True) as engine:
        url = f"loopback://127.0.0.1:{engine.port}"
        await cycle_s(url, "nothing", folder)
        for _ in range(cycles):
            for way, seconds in took.items():
                seconds.append(await cycle_s(url, way, folder))
    return took


def entry_us(folder: Path, count: int = 20_000) -> float:
    """Microseconds to write one entry, in transactions of ten."""
    store = Store(folder / "many.sqlite3")
    entry = Entry(BarrierReturned(), time.time(), "me", "e", "host:1")
    begun = time.perf_counter()
    for _ in range(count // 10):
        store.journal.note([entry] * 10)
    return (time.perf_counter() - begun) / count * 1e6


def report(cycles: int) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        took = asyncio.run(measure(cycles, folder))
        path = folder / "rows and journal" / "engines.sqlite3"
        entries = len(list(read_file(path))) / cycles
        size = sqlite3.connect(path).execute("SELECT SUM(LENGTH(event)) FROM journal").fetchone()
        each_us = entry_us(folder)
    plain, rows_ms, kept = (statistics.median(seconds) * 1e3 for seconds in took.values())
    commit = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False)
    rows = [
        ("commit", commit.stdout.strip()),
        ("date", datetime.now(UTC).date().isoformat()),
        ("machine", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
        ("command", f"`python benchmarks/journal_cost.py --cycles {cycles}`"),
        ("cycle without store, journal and lease, median of turns", f"{plain:.1f} ms"),
        ("cycle with store and lease", f"{rows_ms:.1f} ms, ratio {rows_ms / plain:.3f}"),
        ("cycle with store, lease and journal", f"{kept:.1f} ms, ratio {kept / rows_ms:.3f} to the one before"),
        ("entries of a cycle", f"{entries:.0f}, {size[0] / cycles / 1024:.1f} KiB"),
        ("one entry, in transactions of ten", f"{each_us:.1f} µs"),
    ]
    lines = [
        "# The journal: what it costs",
        "",
        "Written by `benchmarks/journal_cost.py`; do not edit.",
        "",
        "| | |",
        "|---|---|",
    ]
    return "\n".join([*lines, *(f"| {what} | {value} |" for what, value in rows)]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    text = report(options.cycles)
    print(text, end="")
    if options.write is not None:
        options.write.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
