"""Engines on other nodes of a Ray: what they hold is measured there, by an agent in an actor of that node."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def run(script: str, folder: Path) -> dict[str, Any]:
    """What this script found, which has a Ray of its own."""
    path = Path(__file__).with_name(script)
    ran = subprocess.run([sys.executable, str(path), str(folder)], capture_output=True, text=True, timeout=115)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    assert found["left"] == [], "all that was started has ended"
    return found


def test_an_engine_on_another_node_is_measured_there(tmp_path: Path) -> None:
    found = run("two_nodes.py", tmp_path)
    assert found["returned"], "memory was seen to come back"
    assert (found["agent"], found["pid"]) == (True, True), "of the server, which the agent has found"
    assert {"find", "residual", "alive"} & set(found["asked"]) >= {"find", "residual"}
    assert found["asked of the other"] == [], "each node is asked about its own alone"
    assert found["agents"] == 2
    assert "no node no such node lives; there are" in found["refused"]


def test_a_fleet_over_nodes(tmp_path: Path, record_property: Callable[..., None]) -> None:
    """Every node is asked about all of its engines at once; one that is lost takes its own engines with it alone."""
    found = run("three_nodes.py", tmp_path)
    assert found["met"] == found["served"] == ["serving"] * 4
    assert found["returned"], "on each node, measured there"
    for command, took_s, messages in found["phases"]:
        record_property("report", f"{command} of 2 nodes with 2 engines each: {took_s} s, messages a node {messages}")
    assert found["failed"] == ["b0", "b1"]
    assert found["after"] == ["serving", "serving", "failed", "failed"]
    assert found["driver"] == "failed", "a node that is lost is not known to hold nothing"
    assert all("driver of node" in each for each in found["why"])
