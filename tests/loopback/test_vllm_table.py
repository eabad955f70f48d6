"""vLLM's dialect, idle: one case for each row of what was observed on a live 0.32.0 server.

A case is a state, one call in it, its answer, and what /is_paused and /is_sleeping then say.
"""

from __future__ import annotations

from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from vllm_client import call, get, is_paused, is_sleeping, ok, post, sleep_gauge, text_of

STATES: dict[str, tuple[str, ...]] = {
    "serving": (),
    "paused": ("/pause",),
    "kept": ("/pause?mode=keep",),
    "asleep": ("/sleep",),
    "level 0": ("/sleep?level=0",),
    "weights awake": ("/sleep", "/wake_up?tags=weights"),
    "kv awake": ("/sleep", "/wake_up?tags=kv_cache"),
}
PAUSED, RESUMED = {"status": "paused"}, {"status": "resumed"}


def sleeping(tags: list[str]) -> dict[str, Any]:
    return {"status": "sleeping", "tags": tags}


def awake(tags: list[str] | None) -> dict[str, Any]:
    return {"status": "awake", "tags": tags}


def slept(level: int) -> dict[str, Any]:
    return {"status": "sleeping", "level": level}


def after(engine: LoopbackProcess, state: str) -> None:
    for path in STATES[state]:
        assert post(engine, path).status == 200


# state, path, the answer, and (is_paused, is_sleeping) afterwards
ROWS: list[tuple[str, str, dict[str, Any], tuple[bool, bool]]] = [
    ("serving", "/pause", PAUSED, (True, True)),
    ("serving", "/pause?mode=wait", PAUSED, (True, True)),
    ("serving", "/pause?mode=keep&clear_cache=false", PAUSED, (True, True)),
    ("serving", "/pause?mode=keep&mode=abort", PAUSED, (True, True)),
    ("paused", "/pause?mode=keep", PAUSED, (True, True)),
    ("kept", "/pause?mode=wait", PAUSED, (True, True)),
    ("serving", "/resume", RESUMED, (False, False)),
    ("paused", "/resume", RESUMED, (False, False)),
    ("serving", "/sleep", slept(1), (True, True)),
    ("serving", "/sleep?level=0", slept(0), (True, True)),
    ("serving", "/sleep?level=2&mode=wait", slept(2), (True, True)),
    ("asleep", "/sleep?level=2", slept(2), (True, True)),
    ("weights awake", "/sleep?mode=keep", slept(1), (True, True)),
    ("serving", "/wake_up", awake(None), (False, False)),
    ("paused", "/wake_up", awake(None), (False, False)),
    ("asleep", "/wake_up", awake(None), (False, False)),
    ("asleep", "/wake_up?tags=weights", sleeping(["weights"]), (True, True)),
    ("asleep", "/wake_up?tags=kv_cache", sleeping(["kv_cache"]), (True, True)),
    ("weights awake", "/wake_up?tags=kv_cache", awake(["kv_cache"]), (False, False)),
    ("kv awake", "/wake_up?tags=weights", awake(["weights"]), (False, False)),
    ("asleep", "/wake_up?tags=weights&tags=kv_cache", awake(["weights", "kv_cache"]), (False, False)),
    ("weights awake", "/wake_up?tags=weights", sleeping(["weights"]), (True, True)),
    ("asleep", "/wake_up?tags=bogus", sleeping(["bogus"]), (True, True)),
    ("asleep", "/wake_up?tags=weights,kv_cache", sleeping(["weights,kv_cache"]), (True, True)),
    ("asleep", "/wake_up?tags=", sleeping([""]), (True, True)),
    ("asleep", "/wake_up?tags=weights&tags=bogus", sleeping(["weights", "bogus"]), (True, True)),
    ("paused", "/wake_up?tags=bogus", awake(["bogus"]), (False, False)),
    ("level 0", "/wake_up?tags=scheduling", awake(["scheduling"]), (False, False)),
    ("asleep", "/wake_up?tags=scheduling", sleeping(["scheduling"]), (True, True)),
    ("asleep", "/resume", RESUMED, (False, True)),
    ("weights awake", "/resume", RESUMED, (False, True)),
    ("asleep", "/pause", PAUSED, (True, True)),
    ("paused", "/release_kv_cache_memory", {"status": "kv_cache_released"}, (True, True)),
    ("serving", "/reset_prefix_cache", {"success": True}, (False, False)),
    (
        "serving",
        "/reset_prefix_cache?reset_running_requests=true&reset_external=true",
        {"success": True},
        (False, False),
    ),
]


@pytest.mark.parametrize(("state", "path", "answer", "flags"), ROWS, ids=[f"{row[0]}: {row[1]}" for row in ROWS])
def test_a_call_and_its_answer(
    vllm: LoopbackProcess, state: str, path: str, answer: dict[str, Any], flags: tuple[bool, bool]
) -> None:
    after(vllm, state)
    assert ok(post(vllm, path)) == answer
    assert (is_paused(vllm), is_sleeping(vllm)) == flags


def test_a_pause_while_asleep_does_not_outlive_the_wake(vllm: LoopbackProcess) -> None:
    after(vllm, "asleep")
    post(vllm, "/pause?mode=keep")
    assert ok(post(vllm, "/wake_up"))["status"] == "awake"
    assert not is_paused(vllm)
    assert len(text_of(vllm, "hello", 4)) == 4


def test_a_tag_that_is_named_twice_is_500_and_half_awake(vllm: LoopbackProcess) -> None:
    after(vllm, "asleep")
    reply = post(vllm, "/wake_up?tags=weights&tags=weights")
    error = {"message": "Call to wake_up method failed: 'weights'", "type": "InternalServerError", "param": None}
    assert (reply.status, reply.json) == (500, {"error": error | {"code": 500}})
    assert ok(post(vllm, "/wake_up?tags=kv_cache")) == awake(["kv_cache"])  # so the weights are awake


@pytest.mark.parametrize("path", ["/pause", "/sleep", "/wake_up"])
def test_a_body_is_ignored(vllm: LoopbackProcess, path: str) -> None:
    after(vllm, "asleep")
    assert post(vllm, path, {"mode": "bogus", "level": 9, "tags": ["weights"]}).status == 200
    assert is_sleeping(vllm) is (path != "/wake_up")  # which woke everything


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/pause?mode=bogus", "query.mode"),
        ("/pause?clear_cache=zzz", "query.clear_cache"),
        ("/sleep?level=3", "query.level"),
        ("/sleep?level=-1", "query.level"),
        ("/sleep?level=abc", "query.level"),
        ("/sleep?mode=bogus", "query.mode"),
        ("/reset_prefix_cache?reset_running_requests=perhaps", "query.reset_running_requests"),
    ],
)
def test_a_wrong_parameter_is_400_and_changes_nothing(vllm: LoopbackProcess, path: str, param: str) -> None:
    reply = post(vllm, path)
    assert reply.status == 400
    assert reply.json["error"] | {"message": ""} == {"message": "", "type": "Bad Request", "param": param, "code": 400}
    assert reply.json["error"]["message"].startswith("1 validation error:")
    assert not is_paused(vllm)


@pytest.mark.parametrize(
    ("state", "part"),
    [("serving", "requires a completed pause first"), ("asleep", "requires all executor memory to be resident")],
)
def test_a_kv_release_out_of_turn_is_500(vllm: LoopbackProcess, state: str, part: str) -> None:
    after(vllm, state)
    reply = post(vllm, "/release_kv_cache_memory")
    assert reply.status == 500
    assert reply.json["error"]["message"].startswith("Call to release_kv_cache_memory method failed: ")
    assert part in reply.json["error"]["message"]


def test_a_kv_release_is_undone_by_a_wake(vllm: LoopbackProcess) -> None:
    after(vllm, "paused")
    ok(post(vllm, "/release_kv_cache_memory"))
    assert sleep_gauge(vllm) == (0, 0, 0)
    assert ok(post(vllm, "/wake_up?tags=kv_cache")) == awake(["kv_cache"])
    assert (is_paused(vllm), sleep_gauge(vllm)) == (False, (1, 0, 0))


@pytest.mark.parametrize(
    ("path", "states"),
    [
        ("/sleep?level=0", (0, 0, 0)),
        ("/sleep?level=1", (0, 1, 0)),
        ("/sleep?level=2", (0, 0, 1)),
        ("/pause", (1, 0, 0)),
    ],
)
def test_the_gauge_of_the_sleep_state(vllm: LoopbackProcess, path: str, states: tuple[float, ...]) -> None:
    post(vllm, path)
    assert sleep_gauge(vllm) == states
    post(vllm, "/resume")
    assert sleep_gauge(vllm) == states  # written by the front end, and not measured
    post(vllm, "/wake_up?tags=bogus")
    asleep = path in ("/sleep?level=1", "/sleep?level=2")
    assert sleep_gauge(vllm) == (states if asleep else (1, 0, 0))
    post(vllm, "/wake_up")
    assert sleep_gauge(vllm) == (1, 0, 0)


def test_a_partial_wake_does_not_touch_the_gauge(vllm: LoopbackProcess) -> None:
    after(vllm, "weights awake")
    assert sleep_gauge(vllm) == (0, 1, 0)


@pytest.mark.parametrize("state", STATES)
def test_health_says_nothing_of_the_state(vllm: LoopbackProcess, state: str) -> None:
    after(vllm, state)
    for method, path in (("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")):
        reply = call(vllm, method, path)
        assert (reply.status, reply.text) == (200, "")


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/version", {"version": "0.32.0"}),
        ("/load", {"server_load": 0}),
        ("/get_world_size", {"world_size": 1}),
        ("/get_world_size?include_dp=false", {"world_size": 1}),
        ("/weight_info", {"weight_version": "default"}),
        ("/is_paused", {"is_paused": False}),
        ("/is_sleeping", {"is_sleeping": False}),
    ],
)
def test_what_is_read(vllm: LoopbackProcess, path: str, answer: dict[str, Any]) -> None:
    assert ok(get(vllm, path)) == answer


@pytest.mark.parametrize("path", ["/reset_mm_cache", "/reset_encoder_cache"])
def test_resets_of_other_caches_are_empty(vllm: LoopbackProcess, path: str) -> None:
    reply = post(vllm, path)
    assert (reply.status, reply.text) == (200, "")


@pytest.mark.parametrize("path", ["/pause", "/resume", "/sleep", "/wake_up", "/abort_requests", "/collective_rpc"])
def test_the_wrong_method_is_405(vllm: LoopbackProcess, path: str) -> None:
    reply = get(vllm, path)
    assert (reply.status, reply.json) == (405, {"detail": "Method Not Allowed"})


@pytest.mark.parametrize("path", ["/abort", "/no/such/path", "/pause_generation", "/fault_tolerance/status", "/_fault"])
def test_what_is_not_there_is_404(vllm: LoopbackProcess, path: str) -> None:
    reply = post(vllm, path)
    assert (reply.status, reply.json) == (404, {"detail": "Not Found"})


def test_a_trailing_slash_is_redirected(vllm: LoopbackProcess) -> None:
    reply = post(vllm, "/pause/")
    assert reply.status == 307
    assert not is_paused(vllm)


@pytest.mark.parametrize(
    ("body", "aborted"),
    [({}, 0), ({"request_ids": []}, 0), ({"request_ids": ["nope"]}, 1), ({"request_ids": ["a", "b"]}, 2)],
)
def test_an_abort_counts_what_was_asked_for(vllm: LoopbackProcess, body: dict[str, Any], aborted: int) -> None:
    assert ok(post(vllm, "/abort_requests", body)) == {"status": "aborted", "aborted": aborted}
    assert not is_paused(vllm)


@pytest.mark.parametrize("path", ["/abort_requests", "/collective_rpc"])
@pytest.mark.parametrize("body", [None, b"{not json", [1, 2]])
def test_a_body_that_is_no_object_is_400(vllm: LoopbackProcess, path: str, body: Any) -> None:
    reply = post(vllm, path, body)
    assert reply.status == 400
    assert (reply.json["error"]["type"], reply.json["error"]["param"]) == ("Bad Request", None)
