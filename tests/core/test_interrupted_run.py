"""A run of the tests that is interrupted ends as an interrupted one, and no check of the fixtures fails over it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[1]

INTERRUPTED = """
import os, signal

def interrupt(*_):
    raise KeyboardInterrupt

def test_x(tmp_path):
    signal.signal(signal.SIGTERM, interrupt)
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
"""


def test_a_run_that_is_interrupted_in_a_test_checks_what_that_test_wrote(tmp_path: Path) -> None:
    file = tmp_path / "test_x.py"
    file.write_text(INTERRUPTED)
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = ["-q", "-p", "conftest", "-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={tmp_path}", str(file)]
    ended = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2, ended.stdout + ended.stderr  # interrupted
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "Error" not in ended.stdout, ended.stdout
