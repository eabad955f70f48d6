"""Rows of the benchmark: the table, docs/measured/bench.json and the page that is made of it."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "docs" / "measured"
JSON, PAGE = MEASURED / "bench.json", MEASURED / "bench.md"
PACKAGES = ("aiohttp", "requests", "httpx", "transitions", "psutil")
HEADINGS = ("what", "floor", "others", "ours", "ratio", "target", "")
#: How much worse than the committed ratio a ratio may be in `make long`.
WORSE = 2.0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `value` is what is compared with `target`: the ratio to the floor unless said otherwise.

    `unit` is that of floor, others and ours. `why` says why there is no figure. A row without a target is only told.
    """

    part: str
    what: str
    ours: float | None = None
    floor: float | None = None
    others: Mapping[str, float] = field(default_factory=dict)
    unit: str = "s"
    value: float | None = None
    target: float | None = None
    why: str = ""

    @property
    def key(self) -> str:
        """What the row is known by, from one run to the next."""
        return f"{self.part}: {self.what}"

    @property
    def ratio(self) -> float | None:
        """What is compared: `value`, else ours by the floor."""
        if self.value is not None or self.ours is None or not self.floor:
            return self.value
        return self.ours / self.floor

    @property
    def met(self) -> str:
        """Whether the target was met, in one word."""
        if self.target is None:
            return self.why
        if self.ratio is None:
            return f"missed ({self.why})" if self.why else "missed"
        return "met" if self.ratio <= self.target else "missed"

    def cells(self) -> tuple[str, ...]:
        """The row as it is shown."""

        def figure(value: float | None) -> str:
            if value is None:
                return ""
            if self.unit != "s":
                return f"{value:,.4g} {self.unit}".rstrip()
            return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"

        others = "; ".join(f"{name} {figure(value)}" for name, value in self.others.items())
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        target = "" if self.target is None else f"{self.target:g}"
        return (self.key, figure(self.floor), others, figure(self.ours), ratio, target, self.met)


def median(seconds: Sequence[float]) -> float:
    """The median; of none, not a number."""
    return statistics.median(seconds) if seconds else float("nan")


def load() -> list[float]:
    """The load of the host over 1, 5 and 15 minutes."""
    return [round(each, 2) for each in os.getloadavg()]


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, padded to be read as text too."""
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[number]) for line in lines) for number in range(len(HEADINGS))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    padded.insert(1, ["-" * width for width in widths])
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def about(load_before: Sequence[float], seconds: float, skipped: Sequence[str]) -> dict[str, Any]:
    """Versions, commit, date and machine of a run."""
    git = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "lifecycle", "adapters"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "commit": (git.stdout.strip() or "unknown") + (", with uncommitted changes" if changed.stdout.strip() else ""),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(seconds),
        "machine": f"{os.cpu_count()} cores, {_processor()}, {platform.system()} {platform.machine()}",
        "load before": list(load_before),
        "load after": load(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "skipped": list(skipped),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def as_json(rows: Sequence[Row], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What docs/measured/bench.json has."""
    return {**facts, "rows": [{**asdict(row), "ratio": row.ratio, "met": row.met} for row in rows]}


def page(rows: Sequence[Row], facts: Mapping[str, Any]) -> str:
    """docs/measured/bench.md."""
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    skipped = "".join(f"- left out: {each}\n" for each in facts["skipped"])
    return (
        "# What a proved cycle costs\n\n"
        "Written by `make bench`; do not edit. Medians of 3, all ways in turns in one run. The ratio is ours by the\n"
        "floor; what the floor is and what others are, benchmarks/README.md says for each part.\n\n"
        f"- commit {facts['commit']}, {facts['date']}, in {facts['seconds']} s\n"
        f"- {facts['machine']}; load {_loads(facts['load before'])} before, {_loads(facts['load after'])} after\n"
        f"- Python {facts['python']}, {packages}\n{skipped}\n{table(rows)}"
    )


def _loads(loads: Sequence[float]) -> str:
    return " ".join(f"{each:g}" for each in loads)


def worse(rows: Sequence[Row], committed: Mapping[str, Any]) -> list[str]:
    """Each ratio that is more than `WORSE` times the committed one, in words."""
    before = {f"{each['part']}: {each['what']}": each["ratio"] for each in committed.get("rows", [])}
    found = []
    for row in rows:
        was = before.get(row.key)
        if was is None or row.ratio is None:
            if was is not None:
                found.append(f"{row.key}: no figure any more ({row.why}); the committed ratio is {was:.2f}")
            continue
        if row.ratio > WORSE * was:
            found.append(f"{row.key}: ratio {row.ratio:.2f}, more than {WORSE:g} x the committed {was:.2f}")
    return found


def committed() -> dict[str, Any]:
    """What docs/measured/bench.json has now; nothing where there is none."""
    return json.loads(JSON.read_text()) if JSON.exists() else {}
