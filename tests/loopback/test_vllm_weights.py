"""vLLM's dialect: reloads, pushes, labels and checksums."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess, make_weights
from safetensors.numpy import load_file, save
from vllm_client import fresh, get, is_paused, is_sleeping, ok, post, serving, text_of

NOT_CONFIGURED = "Weight transfer not configured."


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_weights(tmp_path_factory.mktemp("weights") / "other.safetensors", seed=7, weights_mib=16)


@pytest.fixture(scope="module")
def transfer_process() -> Iterator[LoopbackProcess]:
    with fresh("--weight-transfer", ranks=2) as started:
        yield started


@pytest.fixture
def transfer(transfer_process: LoopbackProcess) -> LoopbackProcess:
    """An engine that takes pushes, with its own weights and no update open."""
    post(transfer_process, "/finish_weight_update")
    return serving(transfer_process)


def reload(engine: LoopbackProcess, path: Path | None = None) -> Any:
    kwargs = {"weights_path": str(path)} if path else {}
    return ok(post(engine, "/collective_rpc", {"method": "reload_weights", "kwargs": kwargs, "args": []}))


def checksums(engine: LoopbackProcess) -> dict[str, str]:
    found: dict[str, str] = ok(post(engine, "/weight_checker", {"action": "checksum"}))["checksums"]
    return found


def failure(engine: LoopbackProcess, path: str, body: Any = None) -> str:
    reply = post(engine, path, body)
    assert reply.status == 500, reply.text
    message: str = reply.json["error"]["message"]
    return message


def blobs(path: Path) -> dict[str, Any]:
    """The checkpoint in two pushes of one update."""
    tensors = sorted(load_file(path).items())
    halves = (tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :])
    return {"update_info": {"safetensors": [base64.b64encode(save(dict(half))).decode() for half in halves]}}


def test_a_reload_loads_the_path_and_stays_with_it(vllm: LoopbackProcess, other: Path) -> None:
    truth = text_of(vllm, "hello")
    assert reload(vllm, other) == {"results": [None]}
    post(vllm, "/reset_prefix_cache")
    changed = text_of(vllm, "hello")
    assert changed != truth
    reload(vllm)
    assert text_of(vllm, "hello") == changed


@pytest.mark.parametrize("steps", [(), ("/sleep",), ("/sleep", "/wake_up?tags=weights"), ("/sleep", "/wake_up")])
def test_a_reload_works_in_every_state_where_nothing_really_sleeps(steps: tuple[str, ...]) -> None:
    with fresh(cpu_like=True) as engine:
        truth = text_of(engine, "hello")
        for step in steps:
            ok(post(engine, step))
        reload(engine)
        post(engine, "/wake_up")
        assert text_of(engine, "hello") == truth


def test_a_reload_does_not_reset_the_prefix_cache(vllm: LoopbackProcess, other: Path) -> None:
    text = "p" * 40
    ok(post(vllm, "/reset_prefix_cache"))
    text_of(vllm, text)
    reload(vllm, other)
    stale = text_of(vllm, text)  # the old keys and values under the new weights
    ok(post(vllm, "/reset_prefix_cache"))
    assert text_of(vllm, text) != stale


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({}, 400, "Missing 'method' in request body"),
        ({"method": "no_such_method"}, 500, "Method 'no_such_method' is not implemented."),
    ],
)
def test_a_call_of_no_method(vllm: LoopbackProcess, body: dict[str, Any], status: int, part: str) -> None:
    reply = post(vllm, "/collective_rpc", body)
    assert reply.status == status
    assert part in reply.json["error"]["message"]


def test_a_label_moves_no_weights(vllm: LoopbackProcess) -> None:
    before = checksums(vllm)
    answer = {"success": True, "new_version": "v7"}
    assert ok(post(vllm, "/update_weight_version", {"new_version": "v7"})) == answer
    assert ok(get(vllm, "/weight_info")) == {"weight_version": "v7"}
    assert checksums(vllm) == before
    ok(post(vllm, "/update_weight_version", {"new_version": "default"}))


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/update_weight_version", {}, "body.new_version"),
        ("/update_weight_version", {"new_version": 7}, "body.new_version"),
        ("/update_weights", {}, "body.update_info"),
        ("/init_weight_transfer_engine", {}, "body.init_info"),
        ("/weight_checker", {"action": "nonsense"}, "body.action"),
        ("/update_weight_version", b"{not json", "body"),
    ],
)
def test_a_body_without_what_is_needed_is_400(vllm: LoopbackProcess, path: str, body: Any, param: str) -> None:
    reply = post(vllm, path, body)
    assert (reply.status, reply.json["error"]["param"]) == (400, param)


def test_the_checker(vllm: LoopbackProcess) -> None:
    found = checksums(vllm)
    assert "dp0:pp0:pcp0:tp0:final_norm" in found
    compared = {"action": "compare", "baseline": found}
    assert ok(post(vllm, "/weight_checker", compared)) == {"match": True, "mismatches": []}
    assert ok(post(vllm, "/weight_checker", {"action": "reset"})) == {"status": "reset"}
    after = ok(post(vllm, "/weight_checker", compared))
    assert after == {"match": False, "mismatches": sorted(found)}
    reply = post(vllm, "/weight_checker", {"action": "compare"})
    assert reply.status == 400
    assert "requires a 'baseline' object" in reply.json["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/start_weight_update", None),
        ("/finish_weight_update", None),
        ("/start_draft_weight_update", None),
        ("/update_weights", {"update_info": {}}),
        ("/init_weight_transfer_engine", {"init_info": {}}),
    ],
)
def test_transfer_is_not_configured(vllm: LoopbackProcess, path: str, body: Any) -> None:
    assert NOT_CONFIGURED in failure(vllm, path, body)


def test_a_push_of_a_whole_checkpoint(transfer: LoopbackProcess, other: Path) -> None:
    truth = text_of(transfer, "hello")
    ok(post(transfer, "/init_weight_transfer_engine", {"init_info": {}}))
    assert ok(post(transfer, "/start_weight_update")) == {"message": "Weight update started"}
    assert ok(post(transfer, "/update_weights", blobs(other))) == {"message": "Weights updated"}
    finished = post(transfer, "/finish_weight_update", {"weight_version": "v9"})
    assert ok(finished) == {"message": "Weight update finished"}
    assert ok(get(transfer, "/weight_info")) == {"weight_version": "v9"}
    pushed = checksums(transfer)
    reload(transfer, other)
    assert checksums(transfer) == pushed
    ok(post(transfer, "/reset_prefix_cache"))
    assert text_of(transfer, "hello") != truth
    ok(post(transfer, "/shutdown_weight_transfer_engine"))


def test_an_update_is_opened_once_and_closed_once(transfer: LoopbackProcess) -> None:
    assert "must be called before update_weights" in failure(transfer, "/update_weights", {"update_info": {}})
    assert "without a matching start_weight_update" in failure(transfer, "/finish_weight_update")
    ok(post(transfer, "/start_weight_update"))
    assert "already active" in failure(transfer, "/start_weight_update")
    assert "during a weight update" in failure(transfer, "/shutdown_weight_transfer_engine")
    ok(post(transfer, "/finish_weight_update"))
    assert "does not support draft" in failure(transfer, "/start_draft_weight_update")


@pytest.mark.parametrize("blob", ["%%%", base64.b64encode(b"junk").decode()])
def test_a_push_that_fails_closes_the_update(transfer: LoopbackProcess, blob: str) -> None:
    before = checksums(transfer)
    ok(post(transfer, "/start_weight_update"))
    assert failure(transfer, "/update_weights", {"update_info": {"safetensors": [blob]}})
    assert checksums(transfer) == before
    assert "without a matching start_weight_update" in failure(transfer, "/finish_weight_update")


def test_a_push_between_the_tags_of_a_wake(transfer: LoopbackProcess, other: Path) -> None:
    ok(post(transfer, "/sleep?level=2"))
    ok(post(transfer, "/wake_up?tags=weights"))
    ok(post(transfer, "/start_weight_update"))
    ok(post(transfer, "/update_weights", blobs(other)))
    ok(post(transfer, "/finish_weight_update"))
    assert (is_paused(transfer), is_sleeping(transfer)) == (True, True)
    ok(post(transfer, "/wake_up?tags=kv_cache"))
    pushed = text_of(transfer, "hello")
    reload(transfer, other)
    assert text_of(transfer, "hello") == pushed
