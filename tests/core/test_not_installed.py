"""From a checkout that is not installed, what is missing is named: the installation, and no extra of that name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lifecycle

ROOT = Path(lifecycle.__file__).parent.parent
CONNECT = "import asyncio, lifecycle; asyncio.run(lifecycle.Fleet.connect(['loopback://127.0.0.1:1']).__aenter__())"
#: Takes away what an installation of this package leaves: its entry points, and the way to lifecycle.adapters.
UNINSTALL = """
import importlib.metadata, sys
sys.meta_path[:] = [each for each in sys.meta_path if "editable" not in repr(each)]
real = importlib.metadata.entry_points
importlib.metadata.entry_points = lambda **how: real(**how) if KEPT else importlib.metadata.EntryPoints(())
"""


@pytest.mark.parametrize("entry_points", [True, False], ids=["with entry points", "bare"])
@pytest.mark.parametrize(
    "code",
    [CONNECT, "from lifecycle.cli import main; sys.exit(main(['engine', 'loopback']))"],
    ids=["connect", "engine"],
)
def test_it_says_that_the_checkout_is_not_installed(tmp_path: Path, code: str, entry_points: bool) -> None:
    shutil.copytree(ROOT / "lifecycle", tmp_path / "lifecycle", ignore=shutil.ignore_patterns("__pycache__"))
    script = f"KEPT = {entry_points}\n{UNINSTALL}\n{code}"
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        timeout=60,
    )
    report = run.stdout + run.stderr
    assert run.returncode != 0
    assert "this checkout of engine-lifecycle is not installed; run: pip install -e ." in report
    assert "engine-lifecycle[loopback]" not in report
