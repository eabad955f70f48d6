"""What the runs on real engines share: what pytest is given, and what they print of its tests."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import pytest

HERE = Path(__file__).resolve().parent


@dataclass
class Tally:
    """The number of tests on this engine by outcome, and the summary of the likeness test."""

    engine: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    likeness: list[str] = field(default_factory=list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Counts the test once."""
        if report.failed:
            self.failed += 1
        elif report.skipped:
            self.skipped += 1
        elif report.when == "call":
            self.passed += 1
        if report.when == "call":
            self.likeness += [str(value) for name, value in report.user_properties if name == "likeness"]

    def lines(self) -> list[str]:
        """The summary: the counts, and the line of the likeness test."""
        more = [f"{count} {word}" for count, word in ((self.failed, "failed"), (self.skipped, "skipped")) if count]
        return [", ".join([f"{self.engine}: {self.passed} passed", *more]), *self.likeness]


def run(engine: str, arguments: Sequence[str], prepare: Callable[[], object]) -> int:
    """Runs the tests on this engine once it was prepared, and prints their number; 0 if all passed."""
    signal.signal(signal.SIGTERM, interrupt)
    started, tally = time.monotonic(), Tally(engine)
    try:
        prepare()
        print(f"environment and checkpoints are there after {time.monotonic() - started:.0f} s", flush=True)
        status = int(pytest.main(suite(list(arguments)), plugins=[tally]))
    except KeyboardInterrupt:
        status = 130
    print("\n".join(tally.lines()), f"({time.monotonic() - started:.0f} s)")
    return status


def suite(arguments: list[str]) -> list[str]:
    """What pytest is given: these arguments, and all tests where they name none."""
    given = [each for each in arguments if Path(each.partition("::")[0]).exists()]
    options = ["-q", "--timeout", "600", "-p", "no:cacheprovider"]
    return [*options, *arguments, *([] if given else [str(HERE)])]


def interrupt(_signal: int, _frame: FrameType | None) -> None:
    """Ends the run as Ctrl-C does, so that the servers are stopped."""
    raise KeyboardInterrupt
