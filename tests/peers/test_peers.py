"""Released loops of peers on engines that lie and die: what they do by themselves (`make long`), and over our shims.

`make peers` writes what all of them did into docs/measured/peers.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import peers_page
import pytest
import record_peers

LONG = "LIFECYCLE_TEST_LONG" in os.environ
_TORCH = find_spec("torch")
needs_torch = pytest.mark.skipif(
    _TORCH is None or _TORCH.origin is None, reason="torch is not installed; make slow installs it and runs this"
)
#: What every engine of these loops holds with everything mapped, and the most that noise was seen to add, in MiB.
ALL_MIB, NOISE_MIB = 128, 60


def by_loop(found: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(each["loop"], each["fault"]): each for each in found["outcomes"]}


def trained_beside(outcome: dict[str, Any]) -> int:
    """The most that an engine held while training ran; -1 where it did not run."""
    return max((mib for each in outcome["held_mib"] for mib in each), default=-1)


@needs_torch
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_trl_over_the_shim() -> None:
    done = by_loop(record_peers.found_of("trl", "--code", "ours"))
    none, lies, dies = (done["colocated", fault] for fault in ("none", "lies", "dies"))
    assert (none["ended"], none["rollout"]) == ("returned", "trained"), none
    assert len(none["held_mib"]) == 2
    assert trained_beside(none) < NOISE_MIB
    assert "FleetError" in lies["ended"], lies
    assert "memory_returned is refuted" in lies["ended"]
    assert trained_beside(lies) == -1
    assert "raised" in dies["ended"], dies
    assert dies["rollout"] is None
    assert dies["engines"] == ["gone"]


@needs_torch
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_skyrl_over_the_shim() -> None:
    done = by_loop(record_peers.found_of("skyrl", "--code", "ours"))
    none, lies, dies = (done["colocated", fault] for fault in ("none", "lies", "dies"))
    assert (none["ended"], none["rollout"]) == ("returned", "trained"), none
    assert none["engines"] == ["serves trained weights"] * 2
    assert trained_beside(none) < NOISE_MIB
    assert "memory_returned is refuted" in lies["ended"], lies
    assert trained_beside(lies) == -1
    assert lies["engines"][1] == "serves launched weights"
    assert dies["engines"] == ["gone", "silent"], dies
    beside = done["offload_kv_for_weight_sync", "none"]
    assert (beside["ended"], beside["rollout"]) == ("returned", "trained"), beside
    half = done["offload_kv_for_weight_sync", "dies"]
    assert "FleetError" in half["ended"], half
    assert half["engines"] == ["gone", "silent"]


@needs_torch
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not LONG, reason="make long runs the loops with their own code")
@pytest.mark.parametrize("peer", ["trl", "skyrl"])
def test_what_their_own_code_does(peer: str, report: Callable[[str], None]) -> None:
    """Without a fault they do what they should; an engine that lies is not seen; one that dies leaves the others."""
    found = record_peers.found_of(peer, "--code", "theirs")
    done = by_loop(found)
    for (_, fault), outcome in done.items():
        if fault == "none":
            assert (outcome["ended"], outcome["rollout"]) == ("returned", "trained"), outcome
    assert done["colocated", "lies"]["ended"] == "returned"
    assert trained_beside(done["colocated", "lies"]) > ALL_MIB - NOISE_MIB / 2
    assert "raised" in done["colocated", "dies"]["ended"]
    if peer == "skyrl":
        assert done["offload_kv_for_weight_sync", "dies"]["engines"] == ["gone", "serves other weights"]
    ran = {each["name"] for each in found["functions"]}
    assert {"trl": "VLLMGeneration.sync_weights", "skyrl": "WorkerDispatch.save_weights_for_sampler"}[peer] in ran
    report(f"functions of {peer} that ran: {len(found['functions'])}")


def test_the_page_has_the_shims_as_they_are() -> None:
    text = record_peers.PAGE.read_text()
    for path, count in peers_page.shims().items():
        assert f"| [{path}](../../{path}) | {count} |" in text, "run make peers"


@pytest.mark.parametrize("peer", ["trl", "skyrl"])
def test_the_page_has_the_stand_ins_as_they_are(peer: str) -> None:
    text = record_peers.PAGE.read_text()
    for name, count in peers_page.stand_ins(peer).items():
        assert f"| {name} | {count} |" in text, "run make peers"


def test_lines_are_counted_without_imports_and_docstrings(tmp_path: Any) -> None:
    path = tmp_path / "shim.py"
    shim = [
        '"""Words',
        'of two lines."""',
        "import os",
        "",
        "class A:  # a comment",
        '    """Words."""',
        "    b = (",
        "        1",
        "    )",
    ]
    path.write_text("\n".join(shim))
    assert peers_page.code_lines(path) == {5, 7, 8, 9}


def test_a_peer_that_there_is_not_is_refused() -> None:
    command = [sys.executable, str(record_peers.HERE / "run_peer.py"), "slime", "--out", os.devnull]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "invalid choice: 'slime'" in ended.stderr
