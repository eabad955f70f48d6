"""The command line on a real engine: what it prints, its exit codes, and that refusals change nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lifecycle.adapters.loopback import LoopbackProcess

SMALL = ("--threshold-gib", "0.25")


@pytest.mark.slow
def test_step_by_step_over_many_processes(lifecycle_process, address: str, engine: LoopbackProcess) -> None:
    weights = ("--weights", str(engine.weights), "--version", "step-2")
    for arguments, ends in (
        (("pause", address), "paused"),
        (("drain", address), "drained"),
        (("release", address, *weights, *SMALL), "MiB expected"),
        (("release", address, *weights, *SMALL), "released already; nothing was sent"),
        (("restore", address, "--only", "weights", *weights), "weights_restored"),
        (("restore", address, "--only", "kv"), "kv_restored"),
        (("resume", address), "serving"),
    ):
        result = lifecycle_process(*arguments)
        assert result.returncode == 0, (arguments, result.stderr)
        assert ends in result.stdout, arguments
    assert "loaded(step-2)" in lifecycle_process("status", address).stdout


def test_offload_and_onload_remember_the_source(lifecycle, address: str, engine: LoopbackProcess) -> None:
    weights = ("--weights", str(engine.weights), "--version", "step-3")
    offloaded = lifecycle("offload", address, *weights, *SMALL, "--json")
    told = json.loads(offloaded.stdout)
    assert told["ok"]
    assert told["done"][0]["returned_bytes"] > 0.9 * told["done"][0]["expected_bytes"]
    assert "released" in lifecycle("status", address).stdout
    refused = lifecycle("resume", address)
    assert refused.returncode == 3
    assert "allowed here: restore_weights" in refused.stderr
    assert lifecycle("onload", address).returncode == 0
    assert "loaded(step-3)" in lifecycle("status", address).stdout


def test_a_forgotten_engine_is_not_guessed_at(lifecycle, address: str, tmp_path: Path) -> None:
    assert lifecycle("pause", address).returncode == 0
    assert f"`lifecycle recover {address}`" in lifecycle("status", address, state=tmp_path).stdout
    recovered = lifecycle("recover", address, state=tmp_path)
    assert recovered.returncode == 1
    assert "failed: drained or released or weights_restored: whether" in recovered.stdout
    for state in ("drained", "released", "weights_restored"):
        assert f"`lifecycle override {state} {address} --by NAME --reason WHY`" in recovered.stdout
    tight = ("--threshold-gib", "0.08")  # less than any tag holds, so that only one answer fits what is resident
    told = lifecycle("status", address, *tight, state=tmp_path).stdout
    assert "drained" in told, "under a threshold that fits, what is mapped is told from the bytes"
    refused = lifecycle("resume", address, *tight, state=tmp_path)
    assert refused.returncode == 3
    assert "contents unknown" in refused.stderr, "its weights are anybody's guess"
    assert lifecycle("resume", address).returncode == 0, "whoever paused it knows"


def test_who_overrides_a_state_may_say_which_weights_it_has(lifecycle, address: str, tmp_path: Path) -> None:
    assert lifecycle("pause", address).returncode == 0
    said = ("--by", "me", "--reason", "I paused it", "--version")
    for state, version, why in (
        ("released", "v7", "so that it holds no version"),
        ("drained", " ", "is the label of weights"),
    ):
        wrong = lifecycle("override", state, address, *said, version, state=tmp_path)
        assert (wrong.returncode, why in wrong.stderr) == (2, True), wrong.stderr
    overridden = lifecycle("override", "drained", address, *said, "v7", state=tmp_path)
    assert (overridden.returncode, overridden.stdout.strip()) == (0, "asserted by me, with weights v7: I paused it")
    assert lifecycle("resume", address).returncode == 0, "whoever paused it knows"


def test_recover_and_declare(lifecycle, address: str) -> None:
    assert lifecycle("recover", address).stdout.split()[-1] == "serving"
    refused = lifecycle("override", "serving", address, "--by", "me", "--reason", "I looked", "--version", "step-3")
    assert refused.returncode == 3
    assert lifecycle("override", "asleep", address, "--by", "me", "--reason", "x").returncode == 2


def test_update_loads_what_is_named_where_it_may(lifecycle, address: str, engine: LoopbackProcess) -> None:
    weights = ("--weights", str(engine.weights), "--version", "step-5")
    refused = lifecycle("update", address, *weights)
    assert refused.returncode == 3
    assert f"`lifecycle pause {address} --mode abort`" in refused.stderr
    assert lifecycle("update", address).returncode == 2
    for verb in ("pause", "drain"):
        assert lifecycle(verb, address).returncode == 0
    assert lifecycle("update", address, *weights).returncode == 0
    assert "nothing was sent" in lifecycle("update", address, *weights).stdout
    assert lifecycle("update", address, *weights, "--force").returncode == 0
    assert lifecycle("onload", address).returncode == 0
    assert "loaded(step-5)" in lifecycle("status", address).stdout


def test_onload_takes_the_source_that_is_named_then(lifecycle, address: str, engine: LoopbackProcess) -> None:
    weights = ("--weights", str(engine.weights), "--version")
    assert lifecycle("offload", address, *weights, "step-6", *SMALL).returncode == 0
    planned = lifecycle("onload", address, *weights, "step-7", "--dry-run").stdout
    assert "weight_version='step-7'" in planned
    assert lifecycle("onload", address, *weights, "step-7").returncode == 0
    assert "loaded(step-7)" in lifecycle("status", address).stdout
    assert lifecycle("onload", address, *weights, "step-7").returncode == 0, "it serves these already"
    refused = lifecycle("onload", address, *weights, "step-8")
    assert refused.returncode == 3
    assert "it serves other weights" in refused.stderr


def test_a_dry_run_prints_the_calls_and_sends_none(lifecycle, address: str, engine: LoopbackProcess) -> None:
    before = lifecycle("status", address).stdout
    weights = ("--weights", str(engine.weights), "--version", "step-9")
    planned = lifecycle("cycle", address, *weights, "--dry-run").stdout.splitlines()
    assert [line.split()[1].rstrip(":") for line in planned] == [
        "pause",
        "drain",
        "release",
        "restore_weights",
        "update_weights",
        "restore_kv",
        "resume",
    ]
    assert "release_memory_occupation(tags=['kv_cache']), release_memory_occupation(tags=['weights'])" in planned[2]
    assert lifecycle("status", address).stdout.split()[:15] == before.split()[:15]  # up to what is resident


def test_a_cycle_of_kv_alone(lifecycle, address: str) -> None:
    result = lifecycle("cycle", address, "--tags", "kv_cache", "--times", "2", *SMALL)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("returned 96 MiB of 96 MiB expected") >= 2


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("off", {"offload"}),
        ("pause --mode ", {"abort", "wait", "keep", "freeze"}),
        ("declare weights", {"weights_restored"}),
        ("restore --only ", {"weights", "kv"}),
    ],
)
def test_completion(typed: str, offered: set[str]) -> None:
    words = f"lifecycle {typed}"
    asked = {"_LIFECYCLE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    program = Path(sys.executable).with_name("lifecycle")
    told = subprocess.run(
        [program], env={**os.environ, **asked}, capture_output=True, text=True, check=False, timeout=20
    )
    assert set(told.stdout.split()) == offered, told.stderr


def test_diagrams(lifecycle) -> None:
    assert lifecycle("diagram").stdout.startswith("stateDiagram-v2")
    assert lifecycle("diagram", "--what", "full", "--format", "svg").stdout.startswith("<svg xmlns=")
    assert "| release | drained |" in lifecycle("diagram", "--format", "table").stdout


def test_drift_of_the_docs_is_noticed(lifecycle, tmp_path: Path) -> None:
    assert lifecycle("diagram", "--docs", "docs", "--check").returncode == 0
    assert lifecycle("diagram", "--docs", str(tmp_path)).returncode == 0
    page = tmp_path / "lifecycle.md"
    page.write_text(page.read_text().replace("still_idle", "still_busy"))
    result = lifecycle("diagram", "--docs", str(tmp_path), "--check")
    assert result.returncode == 1
    assert "out of date" in result.stdout


def test_a_fleet_that_never_offloads(lifecycle, address: str, tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(f'[groups.reward]\noffload = false\n[[engines]]\nurl = "{address}"\ngroup = "reward"\n')
    result = lifecycle("offload", str(file), "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"ok": True, "done": []}
