"""A driver, or an engine, is killed at every point of a cycle over three engines, and another driver brings all home.

Here at most 40 points, drawn from a seed; where LIFECYCLE_TEST_LONG is set, the whole matrix (`make long`), which
becomes docs/measured/faults.md.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from drivers import in_another_process
from points import DRIVES, Drive, Trace, cases, spread, traced, whole
from recoveries import Matrix, Outcome
from three_engines import SIZES, Sizes, ThreeEngines

from lifecycle import Fleet, Policy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600 if {"LIFECYCLE_TEST_LONG", "LIFECYCLE_FAULTS_POINTS"} & set(os.environ) else 240),
]

#: How many points of each source and sizes are tried here: 36 in all.
FEW = int(os.environ.get("LIFECYCLE_FAULTS_POINTS", "4"))

SOURCES = ("FromDisk", "Kept", "Pushed")


def seed_of_this_tree() -> int:
    """A seed that the committed files give: whoever runs these files tries the same points, and other files others."""
    command = ["git", "rev-parse", "HEAD^{tree}"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return random.Random(found.stdout).randrange(10**6)


#: All tests of a run have one seed, in whichever process they run.
SEED = int(os.environ.get("LIFECYCLE_FAULTS_SEED") or seed_of_this_tree())

#: Only the cases whose description has this in it, of all that there are.
ONLY = os.environ.get("LIFECYCLE_FAULTS_ONLY")


class Points:
    """The tests of one source of weights; a class of its own goes to a worker of its own."""

    source: str

    @pytest.mark.parametrize("sizes", SIZES, ids=str)
    def test_all_that_live_serve_what_is_right(
        self, sizes: Sizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Callable[[str], None]
    ) -> None:
        report(f"faults at points drawn from seed {SEED} (LIFECYCLE_FAULTS_SEED={SEED} draws the same)")
        policy = Policy(residual_threshold_gib=sizes.threshold_gib, settle_s=0.5, poll_s=0.02)
        how = {"backup": self.source == "Kept", "pushes": self.source == "Pushed"}
        with ThreeEngines(sizes, tmp_path, **how) as engines:
            monkeypatch.setenv("LIFECYCLE_STATE_DIR", str(tmp_path / "traced"))
            traces = {drive: self._traced(engines, drive, policy) for drive in DRIVES}
            offset, part = SIZES.index(sizes), SIZES.index(sizes) * len(SOURCES) + SOURCES.index(self.source)
            every = cases(traces, offset)
            long = "LIFECYCLE_TEST_LONG" in os.environ
            chosen = whole(every, offset) if long else spread(every, FEW, seed=SEED, part=part)
            chosen = [case for case in every if ONLY in str(case)] if ONLY else chosen
            matrix, outcomes, folder = Matrix(engines, self.source, policy), list[Outcome](), tmp_path / "traced"
            for number, case in enumerate(chosen):
                folder = tmp_path / f"state-{number}" if case.fresh else folder
                monkeypatch.setenv("LIFECYCLE_STATE_DIR", str(folder))
                outcomes.append(matrix.tried(case, traces[case.drive], folder / "engines.sqlite3"))
                print(outcomes[-1], flush=True)
        _tell(report, f"{self.source}, {sizes}", outcomes, in_full=long)
        problems = [f"{each.case}: {each.problem}" for each in outcomes if each.problem]
        assert problems == [], "\n\n".join(problems)

    def _traced(self, engines: ThreeEngines, drive: Drive, policy: Policy) -> Trace:
        async def run() -> Trace:
            async with Fleet.connect(engines.urls, policy=policy) as fleet:
                return await traced(fleet, engines.source(self.source, "a"), drive)

        trace = in_another_process(run)
        assert isinstance(trace, Trace)
        return trace


class TestFromDisk(Points):
    source = "FromDisk"


class TestKept(Points):
    source = "Kept"


class TestPushed(Points):
    source = "Pushed"


def _tell(report: Callable[[str], None], of: str, outcomes: list[Outcome], *, in_full: bool) -> None:
    """What came of them, in one line; `in_full` in figures and a line for each."""
    home = sum(not each.problem for each in outcomes)
    figures = {
        "points tried": len(outcomes),
        "engines killed by a call": sum(len(each.killed) for each in outcomes),
        "engines refused": sum(len(each.refused) for each in outcomes),
    }
    said = ", ".join(f"{name} {count}" for name, count in figures.items())
    report(f"faults, {of}: {said}, home {home} of {len(outcomes)}")
    for name, count in {**figures, "home": home}.items() if in_full else ():
        report(f"faults, {name}, {of}: {count}")
    for outcome in outcomes if in_full else ():
        report(outcome.row(of))
