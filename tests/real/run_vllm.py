"""`python tests/real/run_vllm.py` runs the tests on a real vLLM, and prints their number and the summary of likeness.

It builds the environment where it is missing (some 3 minutes and 3.4 GB, in `.cache/real/`) and makes the checkpoints.
The tests start and stop the servers, of which no process is left. The exit status is 0 only if all tests passed.
Arguments go to pytest.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
os.environ["LIFECYCLE_REAL"] = "vllm"

from make_model import tiny_checkpoint  # noqa: E402
from tally import run  # noqa: E402
from vllm_env import build  # noqa: E402
from vllm_lane import ENGINE  # noqa: E402


def prepare() -> None:
    """The environment and both checkpoints are there."""
    build()
    for seed in (0, 1):
        tiny_checkpoint(seed)


if __name__ == "__main__":
    sys.exit(run(ENGINE, sys.argv[1:], prepare))
