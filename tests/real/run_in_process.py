"""`python tests/real/run_in_process.py [vllm|sglang]...` runs the tests on real engines in this process.

Each engine's tests run in one process of that engine's environment (`in_process.py`), which is built where it is
missing. Without an argument both run. The exit status is 0 only if all tests passed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import build_env  # noqa: E402
import vllm_env  # noqa: E402
from make_model import checkpoint, tiny_checkpoint  # noqa: E402
from server import STANDIN, RealSGLang  # noqa: E402
from tally import interrupt  # noqa: E402
from vllm_real import RealVLLM  # noqa: E402

#: Seconds within which the tests of one engine end: some 2 minutes on an idle machine with two cores.
TESTS_S = 1200.0


def run_vllm() -> int:
    """The exit status of the tests on vLLM."""
    python = vllm_env.build()
    for seed in (0, 1):
        tiny_checkpoint(seed)
    return _run("vllm", python, RealVLLM.ENVIRONMENT)


def run_sglang() -> int:
    """The exit status of the tests on SGLang, with the stand-in for torch_memory_saver first on its module path."""
    python = build_env.build()
    for seed in (0, 1):
        checkpoint(seed)
    return _run("sglang", python, {**RealSGLang.ENVIRONMENT, "PYTHONPATH": str(STANDIN)})


def _run(engine: str, python: Path, environment: dict[str, str]) -> int:
    tests = sorted(str(each) for each in HERE.glob(f"test_{engine}*_in_process.py"))
    options = ["-q", "--timeout", "600", "-p", "no:cacheprovider", "-W", "default"]  # the engines' packages warn
    own = sysconfig.get_path("purelib")
    lane = {**os.environ, **environment, "LIFECYCLE_REAL": f"{engine}-in-process"}
    command = [str(python), str(HERE / "in_process.py"), own, *options, *tests]
    with subprocess.Popen(command, env=lane, start_new_session=True) as running:
        try:
            return running.wait(TESTS_S)
        finally:
            _end(running.pid)


def _end(group: int) -> None:
    """Nothing of the tests' process group is left."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def main(arguments: list[str]) -> int:
    """Runs the tests of these engines; 0 if all passed."""
    signal.signal(signal.SIGTERM, interrupt)
    lanes = {"vllm": run_vllm, "sglang": run_sglang}
    unknown = [each for each in arguments if each not in lanes]
    if unknown:
        raise SystemExit(f"there is no lane {', '.join(unknown)}; the lanes are {', '.join(lanes)}")
    status = 0
    for engine in arguments or lanes:
        ended = lanes[engine]()
        print(f"{engine} in process: {'all passed' if ended == 0 else f'exit status {ended}'}", flush=True)
        status = status or ended
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
