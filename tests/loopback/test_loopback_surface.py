"""Statuses, shapes of replies, validation errors and keys are those recorded from SGLang 0.5.23."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from loopback_client import call, fresh, get, post

CONTROL = ("/pause_generation", "/continue_generation", "/release_memory_occupation", "/resume_memory_occupation")


@pytest.mark.parametrize("path", [*CONTROL, "/abort_request", "/update_weights_from_disk", "/generate"])
def test_a_body_is_required(engine: LoopbackProcess, path: str) -> None:
    reply = call(engine, "POST", path)
    assert reply.status == 400
    assert reply.json | {"message": ""} == _error("")
    assert "Field required" in reply.json["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/pause_generation", {"mode": "nonsense"}),
        ("/pause_generation", b"{not json"),
        ("/pause_generation", b"[" * 100_000),
        ("/pause_generation", [1, 2]),
        ("/continue_generation", {"torch_empty_cache": "perhaps"}),
        ("/flush_cache?timeout=-1", {}),
        ("/flush_cache?timeout=abc", {}),
        ("/release_memory_occupation", {"tags": "weights"}),
        ("/resume_memory_occupation", {"tags": [5]}),
        ("/abort_request", {"rid": 5}),
        ("/update_weights_from_disk", {}),
        ("/update_weights_from_tensor", {"serialized_named_tensors": ["x"], "load_format": "direct"}),
        ("/update_weight_version", {}),
        ("/generate", {"text": 5}),
        ("/generate", [1, 2]),
    ],
)
def test_a_wrong_body_is_400_and_not_422(engine: LoopbackProcess, path: str, body: Any) -> None:
    reply = post(engine, path, body)
    assert reply.status == 400
    assert reply.json | {"message": ""} == _error("")


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({}, "Either text, input_ids"),
        ({"text": "a", "sampling_params": {"temperature": -1}}, "temperature must be"),
        ({"input_ids": [5] * 5000}, "longer than the model's context length (4096 tokens)"),
        ({"input_ids": [99999]}, "vocabulary"),
        ({"text": []}, "empty"),
        ({"text": "a", "rid": 5}, "rid"),
    ],
)
def test_a_prompt_that_cannot_run_is_400_of_another_shape(
    engine: LoopbackProcess, body: dict[str, Any], part: str
) -> None:
    reply = post(engine, "/generate", body)
    assert reply.status == 400
    assert part in reply.json["error"]["message"]


def test_no_tokens_wanted_is_no_tokens(engine: LoopbackProcess) -> None:
    reply = post(engine, "/generate", {"text": "a", "sampling_params": {"max_new_tokens": 0}}).json
    assert (reply["text"], reply["meta_info"]["finish_reason"]) == ("", {"type": "length", "length": 0})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/pause_generation"),
        ("GET", "/continue_generation"),
        ("GET", "/abort_request"),
        ("GET", "/update_weights_from_disk"),
        ("GET", "/update_weight_version"),
        ("GET", "/generate"),
        ("PUT", "/release_memory_occupation"),
        ("PUT", "/flush_cache"),
        ("POST", "/server_info"),
    ],
)
def test_the_wrong_method_is_405(engine: LoopbackProcess, method: str, path: str) -> None:
    reply = call(engine, method, path, {})
    assert (reply.status, reply.json) == (405, {"detail": "Method Not Allowed"})


@pytest.mark.parametrize("path", ["/get_load", "/get_loads", "/no/such/path", "/metrics", "/_fault"])
def test_what_is_not_there_is_404(engine: LoopbackProcess, path: str) -> None:
    reply = get(engine, path)
    assert (reply.status, reply.json) == (404, {"detail": "Not Found"})


def test_flush_answers_plain_text_to_both_methods(engine: LoopbackProcess) -> None:
    for method in ("GET", "POST"):
        reply = call(engine, method, "/flush_cache")
        assert reply.status == 200
        assert reply.text.startswith("Cache flushed.\n")


def test_loads_have_their_sections(engine: LoopbackProcess) -> None:
    everything = get(engine, "/v1/loads").json["loads"][0]
    assert everything["memory"]["token_capacity"] == everything["max_total_num_tokens"] == 1024
    assert everything["queues"] == {"waiting": 0, "grammar": 0, "paused": 0, "retracted": 0, "prealloc_ready": 0}
    core = get(engine, "/v1/loads?include=core").json["loads"][0]
    assert {"memory", "queues"}.isdisjoint(core)
    assert core.keys() >= {"dp_rank", "timestamp", "num_running_reqs", "num_waiting_reqs", "token_usage"}
    assert "sglang_num_running_reqs" in get(engine, "/v1/loads?format=prometheus").text


def test_loads_of_what_does_not_exist(engine: LoopbackProcess) -> None:
    assert get(engine, "/v1/loads?include=nonsense").status == 500
    assert get(engine, "/v1/loads?include=nonsense").text == "Internal Server Error"
    assert get(engine, "/v1/loads?dp_rank=7").json["loads"] == []
    assert get(engine, "/v1/loads?dp_rank=x").status == 400


def test_model_info_and_models_name_the_checkpoint(engine: LoopbackProcess) -> None:
    info = get(engine, "/model_info").json
    assert (info["model_path"], info["weight_version"], info["load_format"]) == (str(engine.weights), "default", "auto")
    assert get(engine, "/get_model_info").json == info
    assert get(engine, "/v1/models").json["data"][0]["id"] == str(engine.weights)


def _error(message: str) -> dict[str, Any]:
    return {"object": "error", "message": message, "type": "Bad Request", "param": None, "code": 400}


OPEN = ("/health", "/ready")
NORMAL = ("/server_info", "/model_info", "/v1/loads", "/ping", "/v1/models")
ADMIN = ("/flush_cache", "/weights_checker")


@pytest.fixture(scope="module")
def both_keys() -> Iterator[LoopbackProcess]:
    with fresh(api_key="user", admin_api_key="adm") as started:
        yield started


def test_with_both_keys_control_takes_only_the_admin_key(both_keys: LoopbackProcess) -> None:
    for path in ADMIN:
        assert [get(both_keys, path, key=key).status for key in ("adm", "user", None)] == [200, 401, 401]
    for path in NORMAL:
        assert [get(both_keys, path, key=key).status for key in ("adm", "user", None)] == [401, 200, 401]
    for path in OPEN:
        assert get(both_keys, path).status == 200


def test_a_refusal_is_json_and_changes_nothing(both_keys: LoopbackProcess) -> None:
    reply = post(both_keys, "/pause_generation", {}, key="user")
    assert (reply.status, reply.json) == (401, {"error": "Unauthorized"})
    assert get(both_keys, "/ready").status == 200


@pytest.mark.parametrize(
    ("keys", "control", "normal"),
    [({"api_key": "k"}, 401, 401), ({"admin_api_key": "k"}, 401, 200)],
    ids=["api-key", "admin-key"],
)
def test_with_one_key(keys: dict[str, str], control: int, normal: int) -> None:
    with fresh(**keys) as engine:
        assert (get(engine, "/flush_cache").status, get(engine, "/flush_cache", key="k").status) == (control, 200)
        assert (get(engine, "/server_info").status, get(engine, "/server_info", key="k").status) == (normal, 200)
