"""The figures of engine_cycles.py on a real GPU: vLLM and SGLang go round the ring twice, with requests in flight."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import engine_report
import lease
import pytest
from engine_cycles import ENGINES
from engine_servers import unavailable

pytestmark = pytest.mark.timeout(700)

SCRIPT = Path(__file__).parent / "engine_cycles.py"


@pytest.fixture(scope="module", params=ENGINES)
def measured(request: pytest.FixtureRequest, report: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The figures of this engine; they are also in the report."""
    engine: str = request.param
    why, left_s = unavailable(engine), lease.left_s(600)
    if why is None and left_s < lease.ENGINE_S:
        why = f"{left_s:.0f} s are left of LIFECYCLE_GPU_LIMIT_S, and {engine} needs {lease.ENGINE_S:.0f} s"
    if why is not None:
        report.add(engine, skipped=why)
        (pytest.fail if lease.is_required(engine) else pytest.skip)(why)
    folder = Path(os.environ.get("LIFECYCLE_GPU_REPORT") or tmp_path_factory.mktemp("figures"))
    subprocess.run([sys.executable, SCRIPT, engine, f"--out={folder}"], check=False, timeout=left_s)
    figures: dict[str, Any] = json.loads((folder / f"{engine}_cycles.json").read_text())
    report.add(engine, **figures)
    return figures


@pytest.mark.parametrize("what", ["every state", "residual", "in flight", "parity"])
def test_no_target_of_an_engine_is_missed(measured: dict[str, Any], what: str) -> None:
    assert engine_report.missed(measured)[what] == []
