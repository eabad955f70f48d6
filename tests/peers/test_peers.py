"""Released loops of peers on engines that lie and die: what they do by themselves (`make long`), and over our shims.

`make peers` writes what all of them did into docs/measured/peers.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import peer_packages
import peers_page
import pytest
import record_peers

LONG = "LIFECYCLE_TEST_LONG" in os.environ
_TORCH = find_spec("torch")
needs_torch = pytest.mark.skipif(
    _TORCH is None or _TORCH.origin is None, reason="torch is not installed; make slow installs it and runs this"
)
PEERS = ("trl", "skyrl", "verl")
#: SkyRL's other loop: the engines are not on the trainer's devices.
SYNC = ("skyrl", "offload_kv_for_weight_sync")
#: Of each peer, functions of its lifecycle that have to have run.
LIFECYCLE = {
    "trl": ("VLLMGeneration.sync_weights", "VLLMGeneration.generate"),
    "skyrl": (
        "WorkerDispatch.save_weights_for_sampler",
        "RemoteInferenceClient.sleep",
        "RemoteInferenceClient.wake_up",
    ),
    "verl": (
        "CheckpointEngineManager.sleep_replicas",
        "CheckpointEngineManager.update_weights",
        "RolloutReplica.sleep",
        "SGLangHttpServer.sleep",
        "ActorRolloutRefWorker.update_weights",
        "ServerAdapter.update_weights",
        "ServerAdapter.resume",
    ),
}
#: What every engine of these loops holds with everything mapped, and the most that noise was seen to add, in MiB.
ALL_MIB, NOISE_MIB = 128, 60


def by_loop(found: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(each["loop"], each["fault"]): each for each in found["outcomes"]}


def trained_beside(outcome: dict[str, Any]) -> int:
    """The most that an engine held while training ran; -1 where it did not run."""
    return max((mib for each in outcome["held_mib"] for mib in each), default=-1)


@pytest.fixture(scope="module")
def packages() -> None:
    """The peers' packages are installed; else what needs them is skipped, and the reason says what installs them."""
    lacking = peer_packages.lacking()
    if lacking:
        pytest.skip(lacking)


@pytest.fixture(scope="module")
def over_shims(packages: None) -> dict[str, dict[tuple[str, str], dict[str, Any]]]:
    """What each peer's loops did over its shim. Ray's processes beside those of the two that need none."""

    def found(peers: tuple[str, ...]) -> dict[str, dict[tuple[str, str], dict[str, Any]]]:
        return {peer: by_loop(record_peers.found_of(peer, "--code", "ours")) for peer in peers}

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(found, (("verl",), ("trl", "skyrl")))
    return first | second


@needs_torch
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("peer", PEERS)
def test_a_step_over_the_shim(peer: str, over_shims: Any) -> None:
    """Two steps, each on memory that was free, and what is generated comes from the weights that were pushed."""
    none = over_shims[peer]["colocated", "none"]
    assert (none["ended"], none["rollout"]) == ("returned", "trained"), none
    assert len(none["held_mib"]) == 2
    assert trained_beside(none) < NOISE_MIB
    if peer == "trl":  # it sleeps when a step has ended
        assert none["known"] == ["released"]
    else:
        assert none["engines"] == ["serves trained weights"] * 2


@needs_torch
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("peer", PEERS)
def test_no_training_beside_an_engine_that_lies(peer: str, over_shims: Any) -> None:
    """The error names the engine and what it holds; the other engine serves again."""
    lies = over_shims[peer]["colocated", "lies"]
    assert "FleetError" in lies["ended"], lies
    assert "engine-0: release failed" in lies["ended"]
    assert "memory_returned is refuted" in lies["ended"]
    assert trained_beside(lies) == -1
    assert lies["engines"][1:] == ([] if peer == "trl" else ["serves launched weights"])


@needs_torch
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("peer", "loop"), [*((peer, "colocated") for peer in PEERS), SYNC])
def test_no_half_pushed_weights_are_served(peer: str, loop: str, over_shims: Any) -> None:
    """One engine dies while tensors are pushed: the loop raises, and the other engine is kept from serving."""
    dies = over_shims[peer][loop, "dies"]
    assert "raised" in dies["ended"], dies
    assert dies["rollout"] is None
    assert dies["engines"] == ["gone"] + ["silent"] * (peer != "trl")
    assert "serving" not in dies["known"]


@needs_torch
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(not LONG, reason="make long runs the loops with their own code")
@pytest.mark.parametrize("peer", PEERS)
def test_what_their_own_code_does(peer: str, packages: None, report: Callable[[str], None]) -> None:
    """Without a fault they do what they should; an engine that lies is not seen; one that dies leaves the others."""
    found = record_peers.found_of(peer, "--code", "theirs", "--functions")
    done = by_loop(found)
    for (_, fault), outcome in done.items():
        if fault == "none":
            assert (outcome["ended"], outcome["rollout"]) == ("returned", "trained"), outcome
    assert done["colocated", "lies"]["ended"] == "returned"
    assert trained_beside(done["colocated", "lies"]) > ALL_MIB - NOISE_MIB / 2
    assert "raised" in done["colocated", "dies"]["ended"]
    if peer == SYNC[0]:
        assert done[SYNC[1], "dies"]["engines"] == ["gone", "serves other weights"]
    assert set(LIFECYCLE[peer]) <= {each["name"] for each in found["functions"]["theirs"]}
    report(f"functions of {peer} that ran: {len(found['functions']['theirs'])}")


def test_the_page_has_the_shims_as_they_are() -> None:
    text = record_peers.PAGE.read_text()
    for path, count in peers_page.shims().items():
        assert f"| [{path}](../../{path}) | {count} |" in text, "run make peers"


@pytest.mark.parametrize("peer", PEERS)
def test_the_page_has_the_stand_ins_as_they_are(peer: str) -> None:
    text = record_peers.PAGE.read_text()
    for name, count in peers_page.stand_ins(peer).items():
        assert f"| {name} | {count} |" in text, "run make peers"
