"""Engines on other nodes of a Ray: what they hold is measured there, by an agent in an actor of that node."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_an_engine_on_another_node_is_measured_there(tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_nodes.py")
    ran = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=110)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["returned"], "memory was seen to come back"
    assert (found["agent"], found["pid"]) == (True, True), "of the server, which the agent has found"
    assert {"find", "residual", "alive"} & set(found["asked"]) >= {"find", "residual"}
    assert found["asked of the other"] == [], "each node is asked about its own alone"
    assert found["agents"] == 2
    assert "no node no such node lives; there are" in found["refused"]
    assert found["left"] == []
