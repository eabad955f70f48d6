"""The figures of torch_cycles.py on a real GPU: an engine in this process, in both hook modes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lease
import pytest
import torch_report

pytestmark = pytest.mark.timeout(3000)

SCRIPT = Path(__file__).parent / "torch_cycles.py"
NEEDED = ("torch", "torch_memory_saver", "transitions")


@pytest.fixture(scope="module")
def measured(report: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The figures of every part; they are also in the report. LIFECYCLE_GPU_CYCLES adds arguments to the script."""
    # tests/torch is found as an empty package where the real one is missing
    missing = [name for name in NEEDED if getattr(find_spec(name), "origin", None) is None]
    if missing:
        pytest.fail(f"{', '.join(missing)} is not installed here; carry the wheels (make gpu WHEELS=FOLDER)")
    folder = Path(os.environ.get("LIFECYCLE_GPU_REPORT") or tmp_path_factory.mktemp("figures"))
    asked = shlex.split(os.environ.get("LIFECYCLE_GPU_CYCLES", ""))
    subprocess.run([sys.executable, SCRIPT, f"--out={folder}", *asked], check=True, timeout=lease.left_s(2900))
    figures: dict[str, Any] = json.loads((folder / "torch_cycles.json").read_text())
    report.add("torch in this process", **figures)
    return figures


@pytest.mark.parametrize("what", ["every part ran", "logits", "reclaim", "growth", "staging"])
def test_no_target_is_missed(measured: dict[str, Any], what: str) -> None:
    assert torch_report.missed(measured)[what] == []


def test_both_hook_modes_were_measured(measured: dict[str, Any]) -> None:
    assert {name: ring.get("hook_mode") for name, ring in measured["ring"].items()} == {
        "torch": "torch",
        "preload": "preload",
    }
