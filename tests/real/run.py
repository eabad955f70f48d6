"""`python tests/real/run.py` (`make real`) runs the tests on a real SGLang, and prints their number.

It builds the environment where it is missing (some 5 minutes and 3 GB, in `.cache/real/`) and makes the
checkpoints. The tests start and stop the servers, of which no process, socket or shared memory is left. The exit
status is 0 only if all tests passed. Arguments go to pytest.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
os.environ["LIFECYCLE_REAL"] = "sglang"

from build_env import build  # noqa: E402
from lane import ENGINE  # noqa: E402
from make_model import checkpoint  # noqa: E402
from tally import run  # noqa: E402

#: Files that SGLang leaves in shared memory when it is killed, and sometimes on a clean exit.
LEFTOVERS = re.compile(r"sglang_loads_.*\.shm|sem\.mp-.*|sglang.*|psm_.*")
SHARED = Path("/dev/shm")


def main(arguments: list[str]) -> int:
    """Runs the suite and cleans up; 0 if all tests passed."""
    before = set(os.listdir(SHARED))
    try:
        return run(ENGINE, arguments, prepare)
    finally:
        _sweep(before)


def prepare() -> None:
    """The environment and both checkpoints are there."""
    build()
    for seed in (0, 1):
        checkpoint(seed)


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
