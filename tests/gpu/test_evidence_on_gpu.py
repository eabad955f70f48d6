"""The parts of evidence_cycles.py on a real GPU: a look at what was released, small tags, and sizes that are wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lease
import pytest

pytestmark = pytest.mark.timeout(400)

SCRIPT = Path(__file__).parent / "evidence_cycles.py"
NEEDED = ("torch", "torch_memory_saver", "transitions")


@pytest.fixture(scope="module")
def measured(report: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The figures of every part; they are also in the report."""
    # tests/torch is found as an empty package where the real one is missing
    missing = [name for name in NEEDED if getattr(find_spec(name), "origin", None) is None]
    if missing:
        pytest.fail(f"{', '.join(missing)} is not installed here; carry the wheels (make gpu WHEELS=FOLDER)")
    folder = Path(os.environ.get("LIFECYCLE_GPU_REPORT") or tmp_path_factory.mktemp("figures"))
    subprocess.run([sys.executable, SCRIPT, f"--out={folder}"], check=False, timeout=lease.left_s(330))
    figures: dict[str, Any] = json.loads((folder / "evidence_cycles.json").read_text())
    report.add("evidence", **figures)
    return figures


@pytest.mark.parametrize("part", ["sizes", "small", "look"])
def test_nothing_is_wrong(measured: dict[str, Any], part: str) -> None:
    assert measured[part]["wrong"] == [], measured[part]
