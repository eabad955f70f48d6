"""`python tests/real/run_vllm.py` runs the tests on a real vLLM, and prints their number and the summary of likeness.

It builds the environment where it is missing (some 3 minutes and 3.4 GB, in `.cache/real/`) and makes the checkpoints.
The tests start and stop the servers, of which no process is left. The exit status is 0 only if all tests passed.
Arguments go to pytest.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
os.environ["LIFECYCLE_REAL"] = "vllm"

import pytest  # noqa: E402
from make_model import tiny_checkpoint  # noqa: E402
from tally import Tally, interrupt, suite  # noqa: E402
from vllm_env import build  # noqa: E402
from vllm_lane import ENGINE  # noqa: E402


def main(arguments: list[str]) -> int:
    """Runs the suite; 0 if all tests passed."""
    signal.signal(signal.SIGTERM, interrupt)
    started, tally = time.monotonic(), Tally(ENGINE)
    try:
        build()
        for seed in (0, 1):
            tiny_checkpoint(seed)
        print(f"environment and checkpoints are there after {time.monotonic() - started:.0f} s", flush=True)
        status = pytest.main(suite(arguments), plugins=[tally])
    except KeyboardInterrupt:
        status = 130
    print("\n".join(tally.lines()), f"({time.monotonic() - started:.0f} s)")
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
