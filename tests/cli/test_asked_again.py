"""Commands that are given again, by another process: "already" is said of what was proved, and of nothing else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lifecycle.adapters.loopback import LoopbackProcess

SMALL = ("--threshold-gib", "0.25")


def source(engine: LoopbackProcess, version: str) -> tuple[str, ...]:
    return ("--weights", str(engine.weights), "--version", version)


@pytest.mark.slow
def test_a_release_that_was_refuted_is_not_taken_for_one_by_the_next_process(lifecycle) -> None:
    with LoopbackProcess.start(weights_mib=96, kv_mib=96, weights_backup=True, faults=["release=keep"]) as engine:
        address = f"loopback://127.0.0.1:{engine.port}"
        offload = ("offload", address, "--weights", "kept", "--deadline", "6", *SMALL)
        assert lifecycle(*offload).returncode == 1
        for again in (offload, ("release", *offload[1:])):
            result = lifecycle(*again)
            assert result.returncode == 3, (again, result.stdout)
            assert "memory_returned is refuted" in result.stderr
        assert lifecycle("onload", address).returncode == 0


def test_a_release_that_was_proved_is_known_to_the_next_process(lifecycle, address: str, engine) -> None:
    for _ in range(2):
        result = lifecycle("offload", address, *source(engine, "step-2"), *SMALL)
        assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"{address}: released already; nothing was sent"
    assert lifecycle("onload", address).returncode == 0


def test_the_weights_that_were_named_last_come_back(lifecycle, address: str, engine) -> None:
    for version in ("step-3", "step-4"):
        assert lifecycle("offload", address, *source(engine, version), *SMALL).returncode == 0
    assert lifecycle("onload", address).returncode == 0
    assert "loaded(step-4)" in lifecycle("status", address).stdout


def test_a_restore_loads_what_it_names_or_says_why_not(lifecycle, address: str, engine) -> None:
    assert lifecycle("offload", address, *source(engine, "step-5"), *SMALL).returncode == 0
    for _ in range(2):
        assert lifecycle("restore", address, "--only", "weights").returncode == 0
    assert lifecycle("restore", address, *source(engine, "step-6")).returncode == 0
    assert "loaded(step-6)" in lifecycle("status", address).stdout
    refused = lifecycle("restore", address, *source(engine, "step-7"))
    assert refused.returncode == 3
    assert "restore_weights refused in state drained" in refused.stderr
    assert lifecycle("resume", address).returncode == 0


def test_ctrl_c_says_where_that_left_the_engines(lifecycle, tmp_path: Path) -> None:
    with LoopbackProcess.start(weights_mib=96, kv_mib=96, weights_backup=True, faults=["flush=hang"]) as engine:
        address = f"loopback://127.0.0.1:{engine.port}?name=e"
        command = [sys.executable, "-m", "lifecycle", "offload", address, "--weights", "kept", *SMALL]
        environment = {**os.environ, "LIFECYCLE_STATE_DIR": str(tmp_path)}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as program:
            assert program.stdout is not None
            assert "paused" in program.stdout.readline()
            program.send_signal(signal.SIGINT)
            _, told = program.communicate(timeout=20)
        assert program.returncode == 130
        assert told.startswith("lifecycle: interrupted; e is ")
        advised = re.search(r"`lifecycle (recover|onload) ([^`]+)`", told)
        assert advised, told
        assert lifecycle(*advised.groups(), state=tmp_path).returncode == 0
        assert lifecycle("onload", address, state=tmp_path).returncode == 0
