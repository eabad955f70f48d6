"""Weights are replaced while the engine runs, with their labels; the prefix cache may stay that of the old ones."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lifecycle.adapters.loopback import LoopbackProcess, make_weights
from loopback_client import (
    Reply,
    background,
    checksum,
    fresh,
    generate,
    get,
    ids,
    pause,
    post,
    running,
    start_generate,
    stays_silent,
    unpause,
)
from safetensors.numpy import load_file, save, save_file

LONG_PROMPT = "shared prefix " * 6


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of another seed."""
    return make_weights(tmp_path_factory.mktemp("weights") / "other.safetensors", seed=7, weights_mib=16)


@pytest.fixture(scope="module")
def other_ids(other: Path) -> list[int]:
    """The tokens of an engine that was started with the other checkpoint."""
    with fresh(weights=other) as engine:
        return ids(engine, LONG_PROMPT)


@pytest.fixture(scope="module", params=[1, 2], ids=["one-rank", "two-ranks"])
def by_ranks(request: pytest.FixtureRequest) -> Iterator[LoopbackProcess]:
    with fresh(ranks=request.param) as started:
        yield started


@pytest.fixture
def own(by_ranks: LoopbackProcess) -> Iterator[LoopbackProcess]:
    """An engine whose own weights are loaded again after the test."""
    yield by_ranks
    assert update(by_ranks, by_ranks.weights, weight_version="default").status == 200


@pytest.fixture
def slow(slow_engine: LoopbackProcess) -> Iterator[LoopbackProcess]:
    """A slow engine whose own weights are loaded again after the test."""
    yield slow_engine
    assert update(slow_engine, slow_engine.weights, weight_version="default").status == 200


def update(engine: LoopbackProcess, path: object, **more: Any) -> Reply:
    return post(engine, "/update_weights_from_disk", {"model_path": str(path), **more})


def test_new_weights_are_served_as_by_a_fresh_engine(own: LoopbackProcess, other: Path, other_ids: list[int]) -> None:
    before = ids(own, LONG_PROMPT)
    reply = update(own, other, weight_version="v2")
    assert reply.json == {
        "success": True,
        "message": "Succeeded to update model weights. Weight version updated to v2.",
        "num_paused_requests": 0,
    }
    assert ids(own, LONG_PROMPT) == other_ids != before
    info = get(own, "/model_info").json
    assert (info["model_path"], info["weight_version"]) == (str(other), "v2")
    assert generate(own, "x")["meta_info"]["weight_version"] == "v2"


def test_without_a_flush_the_old_cache_is_served(own: LoopbackProcess, other: Path, other_ids: list[int]) -> None:
    before = ids(own, LONG_PROMPT)
    assert update(own, other, flush_cache=False).status == 200
    stale = generate(own, LONG_PROMPT)
    assert stale["meta_info"]["cached_tokens"] > 0
    assert stale["output_ids"] not in (before, other_ids)
    post(own, "/flush_cache")
    assert ids(own, LONG_PROMPT) == other_ids


def bad_checkpoints(good: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    tensors = load_file(good)
    yield "missing", folder / "nowhere.safetensors"
    (folder / "text").write_text("these are no weights at all")
    yield "text", folder / "text"
    (folder / "short").write_bytes(good.read_bytes()[:100_000])
    yield "truncated", folder / "short"
    for name, changed in {
        "absent": {name: tensor for name, tensor in tensors.items() if name != "lm_head"},
        "unknown": tensors | {"extra": tensors["lm_head"]},
        "shape": tensors | {"lm_head": tensors["lm_head"][:10]},
        "dtype": tensors | {"lm_head": tensors["lm_head"].astype(np.float64)},
    }.items():
        save_file({key: np.ascontiguousarray(value) for key, value in changed.items()}, folder / name)
        yield name, folder / name
    yield "size", make_weights(folder / "large", seed=0, weights_mib=17)


def test_a_bad_checkpoint_is_refused_and_the_old_weights_are_served(
    engine: LoopbackProcess, other: Path, tmp_path: Path
) -> None:
    truth, proof = ids(engine, "hello"), checksum(engine)
    for kind, path in bad_checkpoints(other, tmp_path):
        reply = update(engine, path)
        assert (kind, reply.status, reply.json["success"]) == (kind, 400, False)
        assert reply.json["message"]
    assert ids(engine, "hello") == truth
    assert checksum(engine) == proof
    assert get(engine, "/model_info").json["model_path"] == str(engine.weights)


@pytest.mark.slow
def test_an_update_waits_for_requests_in_flight_and_holds_new_ones(slow: LoopbackProcess, other: Path) -> None:
    truth = ids(slow, "old weights", 90)
    flight = start_generate(slow, "old weights", 90)
    running(slow, 1)
    updating = background(lambda: update(slow, other))
    stays_silent(updating, 0.1)
    late = start_generate(slow, "old weights", 90)
    assert flight.result(10)["output_ids"] == truth
    assert updating.result(10).status == 200
    assert late.result(10)["output_ids"] != truth


@pytest.mark.parametrize("mode", ["abort", "retract"])
def test_a_paused_update_runs_at_once(slow: LoopbackProcess, other: Path, mode: str) -> None:
    flight = start_generate(slow, "hello", 50)
    running(slow, 1)
    pause(slow, mode)
    assert update(slow, other).status == 200
    unpause(slow)
    flight.result(10)


def test_an_update_under_a_frozen_batch_changes_the_weights_and_says_400(slow: LoopbackProcess, other: Path) -> None:
    proof = checksum(slow)
    flight = start_generate(slow, "hello", 50)
    running(slow, 1)
    pause(slow, "in_place")
    reply = update(slow, other)
    assert reply.status == 400
    assert reply.json["message"].startswith("Weights were updated, but the cache was not flushed")
    assert checksum(slow) != proof
    assert update(slow, slow.weights, flush_cache=False).status == 200
    unpause(slow)
    flight.result(10)


def test_a_version_is_only_a_label(engine: LoopbackProcess) -> None:
    proof = checksum(engine)
    for label in ("bogus", "bogus", "older", "default"):
        reply = post(engine, "/update_weight_version", {"new_version": label})
        assert reply.json == {"success": True, "message": f"Weight version updated to {label}", "new_version": label}
        assert get(engine, "/model_info").json["weight_version"] == label
    assert checksum(engine) == proof


def test_tensors_are_pushed_in_a_session(own: LoopbackProcess, other: Path, other_ids: list[int]) -> None:
    tensors = list(load_file(other).items())
    assert post(own, "/begin_weight_update").json == {"success": True, "message": "Success"}
    for part in (tensors[::2], tensors[1::2]):
        body = {"serialized_named_tensors": [_blob(dict(part))], "load_format": "safetensors", "weight_version": "v9"}
        assert post(own, "/update_weights_from_tensor", body).status == 200
    assert post(own, "/end_weight_update").status == 200
    assert ids(own, LONG_PROMPT) == other_ids
    assert get(own, "/model_info").json["weight_version"] == "v9"


NO_TENSORS = {"serialized_named_tensors": [], "load_format": "safetensors"}


def test_a_call_outside_its_session_is_refused_and_the_engine_lives(own: LoopbackProcess) -> None:
    """As a real SGLang 0.5.23 answers; older builds ended."""
    truth, proof = ids(own, "hello"), checksum(own)
    end, begin = ("/end_weight_update", {}), ("/begin_weight_update", {})
    tensor = ("/update_weights_from_tensor", NO_TENSORS)
    asked = [
        (end, 400),
        (tensor, 400),
        (begin, 200),
        (begin, 400),
        (tensor, 200),
        (end, 200),
        (end, 400),
        (tensor, 400),
    ]
    for (path, body), status in asked:
        reply = post(own, path, body)
        assert (path, reply.status, reply.json["success"]) == (path, status, status == 200)
        assert reply.json["message"]
    assert post(own, "/begin_weight_update", {"selector": "nonsense"}).status == 400
    assert own.returncode is None
    assert (ids(own, "hello"), checksum(own)) == (truth, proof)


def test_a_session_waits_for_requests_in_flight_unless_paused(slow: LoopbackProcess) -> None:
    flight = start_generate(slow, "hello", 90)
    running(slow, 1)
    begun = background(lambda: post(slow, "/begin_weight_update"))
    stays_silent(begun, 0.1)
    assert flight.result(10)["output_ids"]
    assert begun.result(10).status == 200
    assert post(slow, "/end_weight_update").status == 200


def test_each_version_that_generated_a_token_has_a_span(slow: LoopbackProcess, other: Path) -> None:
    flight = start_generate(slow, "hello", 90)
    running(slow, 1)
    unseen = start_generate(slow, "queued behind nothing", 0)
    assert unseen.result(10)["meta_info"]["weight_versions"] == [{"version": "default", "start": 0, "end": 0}]
    pause(slow, "retract")
    assert update(slow, other, weight_version="v2").status == 200
    unpause(slow)
    meta = flight.result(10)["meta_info"]
    (old, new) = meta["weight_versions"]
    assert (old["version"], old["start"], new["version"], new["end"]) == ("default", 0, "v2", 90)
    assert 0 < old["end"] == new["start"] < 90
    assert meta["weight_version"] == "v2"
    assert generate(slow, "after", 3)["meta_info"]["weight_versions"] == [{"version": "v2", "start": 0, "end": 3}]


def test_a_bad_tensor_is_refused_whole(engine: LoopbackProcess) -> None:
    proof = checksum(engine)
    post(engine, "/begin_weight_update")
    for blob in (_blob({"final_norm": np.ones(3, dtype=np.float32)}), base64.b64encode(b"junk").decode(), "%%%"):
        body = {"serialized_named_tensors": [blob], "load_format": "safetensors"}
        assert post(engine, "/update_weights_from_tensor", body).status == 400
    post(engine, "/end_weight_update")
    assert checksum(engine) == proof


def test_the_checker_names_every_tensor_once(own: LoopbackProcess) -> None:
    reply = get(own, "/weights_checker").json
    assert (reply["success"], reply["message"], len(reply["ranks"])) == (True, "Success.", len(own.rank_pids))
    names = [name for rank in reply["ranks"] for name in rank["checksums"]]
    assert sorted(names) == sorted(load_file(own.weights))
    assert {"per_gpu_checksum", "parallelism_info"} < reply["ranks"][0].keys()


def test_the_checker_can_spoil_the_weights(slow: LoopbackProcess) -> None:
    proof = checksum(slow)
    assert post(slow, "/weights_checker", {"action": "reset_tensors"}).status == 200
    assert checksum(slow) != proof
    assert post(slow, "/weights_checker", {"action": "compare"}).status == 400
    bad = post(slow, "/weights_checker", {"action": "nonsense"})
    assert (bad.status, bad.json["message"]) == (400, "Unsupported action='nonsense'")


def test_the_same_seed_makes_the_same_file(tmp_path: Path) -> None:
    first = make_weights(tmp_path / "a", seed=3, weights_mib=16).read_bytes()
    assert make_weights(tmp_path / "b", seed=3, weights_mib=16).read_bytes() == first
    assert 15.9 * 2**20 < len(first) <= 16 * 2**20


def _blob(tensors: dict[str, Any]) -> str:
    return base64.b64encode(save(tensors)).decode()
