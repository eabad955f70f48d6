"""`python tests/real/run_routers.py` runs the tests on real routers in front of loopback engines.

It builds their environments where they are missing (some 100 MB each, in `.cache/real/`), and needs no engine from a
package. It prints a line a router; the exit status is 0 only if all tests passed. Arguments go to pytest.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
os.environ["LIFECYCLE_REAL"] = "routers"

import pytest  # noqa: E402
from router_env import PACKAGES, build  # noqa: E402


@dataclass
class Tally:
    """The number of tests by router and outcome. A test is of the router that stands first in its brackets."""

    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in PACKAGES})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Counts the test once."""
        kind = next((kind for kind in PACKAGES if re.search(rf"\[{kind}\b", report.nodeid)), None)
        if kind is not None and (report.when == "call" or not report.passed):
            self.outcomes[kind][report.outcome] += 1

    def lines(self) -> list[str]:
        """A line a router."""
        return [
            f"router: {counts['passed']} passed"
            + "".join(f", {count} {what}" for what, count in counts.items() if what != "passed")
            + f" ({kind} {PACKAGES[kind].version})"
            for kind, counts in self.outcomes.items()
        ]


def main(arguments: list[str]) -> int:
    """Runs the suite; 0 if all tests passed."""
    started, tally = time.monotonic(), Tally()
    for kind in PACKAGES:
        build(kind)
    files = [] if any(Path(each.partition("::")[0]).exists() for each in arguments) else [str(HERE)]
    options = ["-q", "--timeout", "300", "-p", "no:cacheprovider"]
    status = pytest.main([*options, *arguments, *files], plugins=[tally])
    print("\n".join(tally.lines()), f"({time.monotonic() - started:.0f} s)")
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
