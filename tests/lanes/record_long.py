"""`make long`: runs what is too long for CI, one run a core at a time, and writes docs/measured/long.md.

A further lane is one more entry of LANES. A lane is split into runs, each with a hypothesis seed of its own, so that
the cores stay busy and no run reaches the time limit of its test. The seed of the first run is drawn, printed and
written down: `make long SEED=N` asks the same examples again.

What a test reports through the `report` fixture becomes a figure of its lane: of lines that end in a number the numbers
of all runs are added up. The page is written whether the lanes passed or not, and the exit code is 1 where one failed.
Lines of `tests/faults` are points of a cycle, and become docs/measured/faults.md. The cases of `tests/conformance`, a
lane a file, become docs/measured/conformance.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import conformance_page as conformance
import faults_page as faults

ROOT = Path(__file__).parents[2]
PAGE = Path("docs/measured/long.md")
WRITTEN = (PAGE.name, "conformance.md", "faults.md", "model.md", "mutants.md")
PACKAGES = ("hypothesis", "pytest", "transitions", "anyio", "aiohttp")
MACHINE_LINE = re.compile(r"(\w+): \d+ rules, (\d+) examples, (\d+) rules run")
COUNT_LINE = re.compile(r"\s*(.+): (\d+)")


@dataclass(frozen=True, slots=True)
class Lane:
    """Tests that are run `runs` times, each time with another seed."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    runs: int


PROPERTIES = "tests/properties/test_properties.py"
FAULTS = "tests/faults/test_faults.py"
CONFORMANCE = "every case of the conformance suite"
LANES = (
    *(
        Lane(
            f"faults at every point of a cycle: {source}", (FAULTS, "-k", source), {"LIFECYCLE_TEST_LONG": "1"}, runs=1
        )
        for source in ("Pushed", "FromDisk", "Kept")
    ),
    Lane("properties of one engine", (PROPERTIES, "-k", "engines and length"), {"LIFECYCLE_EXAMPLES": "1400"}, runs=6),
    Lane(
        "drivers of one engine",
        ("tests/attack/test_owner.py", "tests/attack/test_crash.py"),
        {"LIFECYCLE_TEST_LONG": "1"},
        runs=1,
    ),
    Lane("two pipelines take turns", ("tests/faults/test_taking_turns.py",), {"LIFECYCLE_TEST_LONG": "1"}, runs=1),
    Lane("cycles with random faults", ("tests/faults/test_random_faults.py",), {"LIFECYCLE_TEST_LONG": "1"}, runs=1),
    *(
        Lane(f"{CONFORMANCE}: {each.stem.removeprefix('test_')}", (str(each.relative_to(ROOT)),), {}, runs=1)
        for each in sorted((ROOT / "tests" / "conformance").glob("test_*.py"))
    ),
    Lane(
        "conformance of an adapter of a third party",
        ("tests/declared/test_third_party.py",),
        {"LIFECYCLE_TEST_LONG": "1"},
        runs=1,
    ),
    Lane(
        "released loops of peers, with their own code",
        ("tests/peers/test_peers.py", "-k", "their_own_code"),
        {"LIFECYCLE_TEST_LONG": "1"},
        runs=1,
    ),
    Lane("properties of a fleet", (PROPERTIES, "-k", "fleets and length"), {"LIFECYCLE_EXAMPLES": "1500"}, runs=6),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What one run of a lane came to. `lines` are what its tests reported, `cells` its conformance cases."""

    lane: str
    seed: int
    passed: bool
    seconds: float
    lines: tuple[str, ...] = ()
    cells: tuple[conformance.Cell, ...] = ()


def reported(junit: Path) -> tuple[str, ...]:
    """The lines that tests reported, which pytest writes as properties; none where there is no junit file."""
    if not junit.exists():
        return ()
    found = ElementTree.parse(junit).iter("property")
    return tuple(each.get("value", "") for each in found if each.get("name") != "conformance")


def run(lane: Lane, seed: int) -> Result:
    """Runs a lane once with this hypothesis seed, and prints one line when it has ended, or all of a failed run."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={junit}"]
        ended = subprocess.run(
            [*command, f"--hypothesis-seed={seed}", *lane.arguments],
            cwd=ROOT,
            env={**os.environ, **lane.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        seconds, passed = time.monotonic() - began, ended.returncode == 0
        result = Result(lane.name, seed, passed, seconds, reported(junit), conformance.cells(junit))
    said = f"{lane.name}, seed {seed}: {'passed' if passed else 'FAILED'} in {seconds:.0f} s"
    print(said if passed else f"{said}\n{ended.stdout}", flush=True)
    return result


def figures(lines: Sequence[str]) -> dict[str, int]:
    """The figures of a lane: each line that ends in a number, and the examples of each state machine, added up."""
    totals: dict[str, int] = {}
    for line in lines:
        machine = MACHINE_LINE.fullmatch(line)
        count = COUNT_LINE.fullmatch(line)
        if machine:
            name, examples, rules = machine.groups()
            found = {f"{name} examples": int(examples), f"{name} rules run": int(rules)}
        elif count:
            found = {count.group(1): int(count.group(2))}
        else:
            found = {}
        for name, value in found.items():
            totals[name] = totals.get(name, 0) + value
    return totals


def summary(results: Sequence[Result], seconds: float) -> str:
    """One sentence: how many runs passed, in how long, and which failed."""
    failed = [f"{each.lane} (seed {each.seed})" for each in results if not each.passed]
    said = f"{len(results) - len(failed)} of {len(results)} runs passed in {seconds / 60:.1f} minutes"
    return f"{said}; FAILED: {', '.join(failed)}" if failed else said


def commit() -> str:
    """The commit that was tested, and whether the working tree differed from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", *(f":(exclude){PAGE.with_name(name)}" for name in WRITTEN))
        return git("rev-parse", "--short=10", "HEAD") + (", with uncommitted changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git checkout)"


def page(results: Sequence[Result], *, seed: int, seconds: float, facts: Mapping[str, str]) -> str:
    """docs/measured/long.md: what was run and where (`facts`), the result, and the figures of each lane."""
    rows = {**facts, "command": f"`make long SEED={seed}`", "result": summary(results, seconds)}
    parts = [
        "# The long lanes: the last result\n\n",
        "Written by `make long` (`tests/lanes/record_long.py`); do not edit.\n\n| | |\n|---|---|\n",
        *(f"| {name} | {value} |\n" for name, value in rows.items()),
    ]
    return "".join([*parts, *_sections(results)])


def _sections(results: Sequence[Result], when: str = "") -> Iterator[str]:
    """The figures of each lane under a heading of its own; `when` stands behind its name."""
    for lane in dict.fromkeys(each.lane for each in results):
        mine = [each for each in results if each.lane == lane]
        passed, lines = sum(each.passed for each in mine), [line for each in mine for line in each.lines]
        yield f"\n## {lane}{when}\n\n{passed} of {len(mine)} runs passed.\n\n| what | count |\n|---|---:|\n"
        yield from (f"| {name} | {count:,} |\n" for name, count in sorted(figures(lines).items()))


def again(before: str, results: Sequence[Result], facts: Mapping[str, str]) -> str:
    """The page as it was, with what came of these lanes when they were run again, and at which commit."""
    seeds = ", ".join(str(each.seed) for each in results)
    return "".join([before, *_sections(results, f", again at {facts['commit']}, {facts['date']} (seeds {seeds})")])


def where() -> dict[str, str]:
    """The commit, the date, the machine and the versions that a result holds for."""
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)]
    return {
        "commit": commit(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": ", ".join(versions),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs every lane, prints the closing summary and writes the page; 1 where a run failed."""
    parser = argparse.ArgumentParser(description="Run the long lanes and record what they came to.")
    parser.add_argument("--seed", type=int, default=None, help="hypothesis seed of the first run (default: drawn)")
    parser.add_argument("--output", type=Path, default=ROOT / PAGE, help="the page to write")
    parser.add_argument("--only", default="", help="only lanes with this in their name: added to the page as it is")
    chosen = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if chosen.seed is None else chosen.seed
    facts, began, cores = where(), time.monotonic(), len(os.sched_getaffinity(0))
    every = enumerate((lane for lane in LANES for _ in range(lane.runs)), seed)  # a lane has the same seeds alone
    jobs = [(lane, each) for each, lane in every if chosen.only in lane.name]
    if not jobs:
        parser.error(f"no lane has {chosen.only!r} in its name: {', '.join(lane.name for lane in LANES)}")
    print(f"{len(jobs)} runs, {cores} at a time, the first with seed {jobs[0][1]}", flush=True)
    with ThreadPoolExecutor(cores) as pool:
        results = list(pool.map(lambda job: run(*job), jobs))
    seconds = time.monotonic() - began
    text = page(results, seed=seed, seconds=seconds, facts=facts)
    text = again(chosen.output.read_text(), results, facts) if chosen.only else text
    chosen.output.write_text(text)
    points = faults.points(line for each in results for line in each.lines)
    if points and not chosen.only:
        chosen.output.with_name("faults.md").write_text(faults.page(points, facts))
    wanted, ran = ({each.name for each in LANES if each.name.startswith(CONFORMANCE)}, {each.lane for each in results})
    if wanted and wanted <= ran:
        cells = [cell for each in results for cell in each.cells]
        chosen.output.with_name("conformance.md").write_text(conformance.page(cells, facts))
    print(f"\n{text}\n{summary(results, seconds)}; written: {PAGE}")
    return 0 if all(each.passed for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
