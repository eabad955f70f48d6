"""`lifecycle wait`: observes until engines are somewhere, on evidence, and moves none."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle.cli import FAILED, OK, USAGE
from lifecycle.store.journal import read_file

Run = Callable[..., subprocess.CompletedProcess[str]]


def entries(kept: Path) -> int:
    """How much stands in the journal."""
    return sum(1 for _ in read_file(kept / "engines.sqlite3"))


def test_what_is_there_already_is_found_at_once(lifecycle: Run, address: str) -> None:
    done = lifecycle("wait", address, "--for", "state=serving", "--timeout", "5")
    assert (done.returncode, done.stdout, done.stderr) == (OK, f"{address}  serving\n", "")


@pytest.mark.slow
def test_released_is_waited_for_until_another_process_has_released_it(
    lifecycle: Run, address: str, engine: LoopbackProcess, kept: Path
) -> None:
    step = ("--weights", str(engine.weights), "--version", "v2", "--threshold-gib", "0.25")
    lifecycle("status", address)
    moved: list[int] = []

    def others() -> None:
        command = [sys.executable, "-m", "lifecycle", "offload", address, *step]
        environment = {"LIFECYCLE_STATE_DIR": str(kept), "PATH": ""}
        moved.append(subprocess.run(command, env=environment, capture_output=True, timeout=60).returncode)

    other = threading.Thread(target=others)
    other.start()
    try:
        done = lifecycle("wait", address, "--for", "state=released", "--deadline-s", "30", "--json")
    finally:
        other.join()
    try:
        assert moved == [OK]
        assert json.loads(done.stdout) == {"ok": True, "engines": {address: {"state": "released", "why": ""}}}
        assert done.returncode == OK
        before = entries(kept)
        again = lifecycle("wait", address, "--for", "state=serving", "--deadline", "0.3")
        assert again.returncode == FAILED
        assert f"{address}  released: it is released" in again.stdout
        assert "1 of 1 engines not serving after 0.3 s" in again.stdout
        assert entries(kept) == before, "a wait writes nothing down"
        assert lifecycle("status", address).stdout.split().count("released") == 1, "and moves nobody"
    finally:
        lifecycle("onload", address)


def test_one_that_gave_its_kv_cache_alone_is_not_released(lifecycle: Run, address: str) -> None:
    assert lifecycle("offload", address, "--threshold-gib", "0.25", "--tags", "kv_cache").returncode == OK
    try:
        done = lifecycle("wait", address, "--for", "state=released", "--timeout", "0.2")
        assert done.returncode == FAILED
        assert f"{address}  weights_restored: it is weights_restored" in done.stdout
    finally:
        assert lifecycle("onload", address).returncode == OK


def test_one_that_does_not_answer_is_named_at_the_deadline(lifecycle: Run, address: str) -> None:
    began_s = time.monotonic()
    nobody = "loopback://127.0.0.1:9"
    done = lifecycle("wait", address, nobody, "--for", "state=serving", "--timeout", "0.5")
    assert done.returncode == FAILED
    assert time.monotonic() - began_s < 10
    assert f"{address}  serving\n{nobody}  unknown: " in done.stdout
    assert "1 of 2 engines not serving after 0.5 s" in done.stdout


@pytest.mark.parametrize("given", ["released", "state=", "state=asleep", "state=failed", "condition=Ready", ""])
def test_what_cannot_be_waited_for_is_a_usage_error(lifecycle: Run, address: str, given: str) -> None:
    done = lifecycle("wait", address, "--for", given)
    assert done.returncode == USAGE
    assert f"--for {given!r}: state=STATE, with one of serving, paused," in done.stderr


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf"])
def test_a_deadline_is_a_positive_number(lifecycle: Run, address: str, given: str) -> None:
    done = lifecycle("wait", address, "--for", "state=serving", "--deadline-s", given)
    assert done.returncode == USAGE
    assert "--deadline-s must be a finite number > 0" in done.stderr


def test_an_engine_that_is_not_in_the_fleet_is_a_usage_error(lifecycle: Run, address: str) -> None:
    assert lifecycle("wait", address, "--for", "state=serving", "--engines", "nobody").returncode == USAGE
