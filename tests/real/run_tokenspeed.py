"""`python tests/real/run_tokenspeed.py` runs the tests on tokenspeed's real control plane, and prints their number.

What is real and what is stubbed says the beginning of `tokenspeed_real.py`: its control routes, its front end's control
client and lock, `PauseController`, `PauseHooks`, `MemoryOccupationController` and the compiled scheduler are real; the
model, the gateway, the event loop and torch_memory_saver are stubs. So no memory is measured here: what is real is what
is answered, in which order, and what becomes of requests.

It builds the environment where it is missing (some 4 minutes and 1 GB, most of it torch, in `.cache/real/`). The exit
status is 0 only if all tests passed. Arguments go to pytest.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
os.environ["LIFECYCLE_REAL"] = "tokenspeed"

import pytest  # noqa: E402
from tally import Tally, interrupt, suite  # noqa: E402
from tokenspeed_env import build  # noqa: E402
from tokenspeed_lane import ENGINE  # noqa: E402


def main(arguments: list[str]) -> int:
    """Runs the suite; 0 if all tests passed."""
    signal.signal(signal.SIGTERM, interrupt)
    started, tally = time.monotonic(), Tally(ENGINE)
    try:
        build()
        status = pytest.main(suite(arguments), plugins=[tally])
    except KeyboardInterrupt:
        status = 130
    print("\n".join(tally.lines()), f"({time.monotonic() - started:.0f} s)")
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
