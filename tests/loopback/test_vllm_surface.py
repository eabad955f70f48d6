"""vLLM's dialect: keys, modes, limits, data-parallel cores, prompts and options."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from lifecycle.adapters.loopback.cli import main
from loopback_client import SLOW_STEPS, background, until
from vllm_client import (
    fresh,
    gauge,
    get,
    is_paused,
    is_sleeping,
    ok,
    post,
    prompt,
    running,
    stream,
    text_of,
)

LIFECYCLE = ("/is_paused", "/is_sleeping", "/server_info", "/weight_info", "/get_world_size")
OPEN = ("/health", "/ping", "/version", "/load", "/metrics")


def test_a_key_is_for_what_generates_alone() -> None:
    with fresh(api_key="secret") as engine:
        assert {get(engine, path).status for path in (*LIFECYCLE, *OPEN)} == {200}
        assert post(engine, "/pause").status == post(engine, "/wake_up").status == 200
        reply = get(engine, "/v1/models")
        assert (reply.status, reply.json) == (401, {"error": "Unauthorized"})
        assert post(engine, "/v1/completions", prompt("hello", 1)).status == 401
        wrong, right = ({"Authorization": f"Bearer {key}"} for key in ("wrong", "secret"))
        assert get(engine, "/v1/models", headers=wrong).status == 401
        assert get(engine, "/v1/models", headers=right).status == 200


def test_without_development_mode_no_lifecycle_call_is_there() -> None:
    with fresh("--no-dev-mode") as engine:
        for path in LIFECYCLE:
            assert (get(engine, path).status, get(engine, path).json) == (404, {"detail": "Not Found"})
        for path in ("/pause", "/resume", "/sleep", "/wake_up", "/collective_rpc", "/abort_requests"):
            assert post(engine, path, {}).status == 404
        assert {get(engine, path).status for path in OPEN} == {200}
        assert len(text_of(engine, "hello", 3)) == 3


def test_without_load_tracking_there_is_never_load(vllm: LoopbackProcess) -> None:
    post(vllm, "/pause")
    queued = stream(vllm, "hello", 2)
    assert ok(get(vllm, "/load")) == {"server_load": 0}
    post(vllm, "/resume")
    queued.ended()


def test_requests_beyond_the_limit_get_503() -> None:
    with fresh("--max-num-queued-reqs", "2", *SLOW_STEPS) as engine:
        post(engine, "/pause")
        held = [stream(engine, "held", 2) for _ in range(2)]
        reply = post(engine, "/v1/completions", prompt("hello", 1))
        assert (reply.status, reply.json["error"]["type"]) == (503, "Service Unavailable")
        assert "cannot accept new requests" in reply.json["error"]["message"]
        assert gauge(engine, "admission_rejections_total") == 1
        post(engine, "/resume")
        [each.ended() for each in held]
        assert len(text_of(engine, "hello", 1)) == 1


def test_a_burst_beyond_the_limit_is_refused_before_or_in_the_stream() -> None:
    with fresh("--max-num-queued-reqs", "2", *SLOW_STEPS) as engine:
        with ThreadPoolExecutor(16) as pool:
            burst = [each.ended() for each in pool.map(lambda index: stream(engine, f"burst {index}", 20), range(16))]
        served = [each for each in burst if each.finish == "length"]
        others = [each for each in burst if each.finish != "length"]
        assert len(served) >= 2
        assert others
        assert {each.status for each in others} <= {200, 503}
        for each in others:
            [told] = each.chunks
            assert (told["error"]["code"], "cannot accept new requests" in told["error"]["message"]) == (503, True)
        assert gauge(engine, "admission_rejections_total") == len(others)


@pytest.fixture(scope="module")
def cores() -> Iterator[LoopbackProcess]:
    with fresh(*SLOW_STEPS, "--data-parallel-size", "2", allow_faults=True) as started:
        yield started


def test_cores_share_requests_and_agree(cores: LoopbackProcess) -> None:
    assert len(set(cores.rank_pids)) == 2
    assert ok(get(cores, "/get_world_size")) == {"world_size": 2}
    assert ok(get(cores, "/get_world_size?include_dp=false")) == {"world_size": 1}
    flights = [stream(cores, f"stream {index}", 40) for index in range(2)]
    running(cores, 2)
    assert [gauge(cores, "num_requests_running", engine=core) for core in ("0", "1")] == [1, 1]
    ok(post(cores, "/pause"))
    assert {each.ended().finish for each in flights} == {"abort"}
    assert (is_paused(cores), is_sleeping(cores)) == (True, True)
    assert ok(post(cores, "/wake_up"))["status"] == "awake"


def test_cores_that_disagree_are_500(cores: LoopbackProcess) -> None:
    ok(post(cores, "/_fault", {"pause": "stuck:1"}))
    try:
        ok(post(cores, "/pause"))
        reply = get(cores, "/is_paused")
        part = "Engines returned different is_scheduler_paused results: [True, False]"
        assert (reply.status, reply.json) == (500, {"error": f"Failed to fetch pause status: {part}"})
        reply = get(cores, "/is_sleeping")
        part = "Engines returned different is_sleeping results: [True, False]"
        assert (reply.status, reply.json["error"]["message"]) == (500, part)
    finally:
        post(cores, "/_fault", {"pause": None})
        post(cores, "/resume")


def test_before_0_32_the_first_core_speaks_for_all() -> None:
    arguments = ("--data-parallel-size", "2", "--fault", "pause=stuck:1")
    with fresh(*arguments, dialect="vllm:0.30") as engine:
        ok(post(engine, "/pause"))
        assert (is_paused(engine), is_sleeping(engine)) == (True, True)
        asked = [background(lambda: text_of(engine, "hello", 2)) for _ in range(2)]
        until(lambda: any(each.done() for each in asked))  # though it says that it is paused
        ok(post(engine, "/resume"))
        assert [len(each.result(5)) for each in asked] == [2, 2]


def test_the_identity_of_the_process(vllm: LoopbackProcess) -> None:
    info = ok(get(vllm, "/server_info?config_format=json"))
    assert info["vllm_config"]["instance_id"].isdecimal()
    assert info["vllm_config"]["model_config"]["enable_cumem_allocator"] is True
    assert info["vllm_config"]["instance_id"] in ok(get(vllm, "/server_info"))["vllm_config"]
    assert get(vllm, "/server_info?config_format=xml").status == 400
    assert "process_start_time_seconds" in get(vllm, "/metrics").text
    with fresh() as another:
        config = ok(get(another, "/server_info?config_format=json"))["vllm_config"]
    assert config["instance_id"] != info["vllm_config"]["instance_id"]


def test_an_answer_has_every_field(vllm: LoopbackProcess) -> None:
    answer = ok(post(vllm, "/v1/completions", prompt("hello", 3), headers={"X-Request-Id": "mine"}))
    assert (answer["id"], answer["object"], answer["model"]) == ("cmpl-mine", "text_completion", str(vllm.weights))
    [choice] = answer["choices"]
    assert (len(choice["text"]), choice["finish_reason"], choice["stop_reason"]) == (3, "length", None)
    assert answer["usage"]["prompt_tokens"] + 3 == answer["usage"]["total_tokens"] == 8
    for prompts in (["hello", "hi"], [[104, 105], [104]]):
        several = ok(post(vllm, "/v1/completions", {"prompt": prompts, "max_tokens": 2}))
        assert [each["index"] for each in several["choices"]] == [0, 1]


def test_a_stream_is_the_same_text_in_chunks(vllm: LoopbackProcess) -> None:
    flight = stream(vllm, "hello", 6, stream_options={"include_usage": True}).ended()
    assert flight.text == text_of(vllm, "hello", 6)
    assert (flight.chunks[-1]["choices"], flight.chunks[-1]["usage"]["completion_tokens"]) == ([], 6)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in flight.chunks[:-1]]
    assert reasons[-1] == "length"
    assert set(reasons[:-1]) <= {None}


def test_a_chat(vllm: LoopbackProcess) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "max_completion_tokens": 4, "ignore_eos": True}
    answer = ok(post(vllm, "/v1/chat/completions", body, headers={"X-Request-Id": "mine"}))
    assert (answer["id"], answer["object"]) == ("chatcmpl-mine", "chat.completion")
    said = answer["choices"][0]["message"]
    assert (said["role"], len(said["content"])) == ("assistant", 4)
    streamed = post(vllm, "/v1/chat/completions", {**body, "stream": True}).text
    assert streamed.count("chat.completion.chunk") >= 2
    assert '"role": "assistant"' in streamed
    assert streamed.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stop", ["e", ["zz", "e"]])
def test_a_stop_string(vllm: LoopbackProcess, stop: Any) -> None:
    whole = text_of(vllm, "hello", 60)
    needle = stop if isinstance(stop, str) else stop[-1]
    if needle in whole:
        answer = ok(post(vllm, "/v1/completions", prompt("hello", 60, stop=stop)))["choices"][0]
        assert (answer["finish_reason"], answer["stop_reason"]) == ("stop", needle)


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"prompt": "hello", "model": "another"}, 404, "NotFoundError"),
        ({"prompt": "hello", "max_tokens": 0}, 400, "BadRequestError"),
        ({"prompt": "hello", "max_tokens": 5000}, 400, "BadRequestError"),
        ({"prompt": "hello", "temperature": -1}, 400, "BadRequestError"),
        ({"prompt": [99999]}, 400, "BadRequestError"),
        ({"prompt": []}, 400, "BadRequestError"),
        ({"prompt": 5}, 400, "Bad Request"),
        ({}, 400, "Bad Request"),
        (b"{not json", 400, "Bad Request"),
    ],
)
def test_a_prompt_that_cannot_run(vllm: LoopbackProcess, body: Any, status: int, kind: str) -> None:
    reply = post(vllm, "/v1/completions", body)
    assert (reply.status, reply.json["error"]["type"], reply.json["error"]["code"]) == (status, kind, status)


def test_what_is_not_said_to_be_json_is_refused(vllm: LoopbackProcess) -> None:
    reply = post(vllm, "/v1/completions", prompt("hello", 1), headers={"Content-Type": "text/plain"})
    assert reply.status == 400
    assert "Unsupported Media Type" in reply.json["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--dialect", "vllm:0.31"), "there are 0.24, 0.25, 0.30, 0.32, 0.33"),
        (("--dialect", "nobody"), "there are sglang, vllm"),
        (("--cpu-like",), "--cpu-like needs --dialect vllm"),
        (("--no-dev-mode",), "--no-dev-mode needs --dialect vllm"),
        (("--data-parallel-size", "2"), "--data-parallel-size needs --dialect vllm"),
        (("--dialect", "vllm", "--cpu-like", "--enable-sleep-mode"), "Sleep mode is not supported"),
        (("--dialect", "vllm", "--data-parallel-size", "0"), "must be positive"),
        (("--dialect", "vllm", "--fault-tolerance", "--data-parallel-size", "2"), "requires external load balancer"),
        (("--recovery-timeout-s", "2"), "--recovery-timeout-s needs --dialect vllm"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], part: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    assert exit_.value.code == 2
    assert part in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "path", "status"),
    [("pause=error:503", "/pause", 503), ("sleep=error_after", "/sleep", 500), ("wake_up=error", "/wake_up", None)],
)
def test_faults_have_the_names_of_either_dialect(fault: str, path: str, status: int | None) -> None:
    if status is None:
        with pytest.raises(ValueError, match="amount"):
            from lifecycle.adapters.loopback.faults import parse_fault

            parse_fault(fault)
        return
    with fresh(faults=[fault]) as engine:
        assert post(engine, path).status == status
        assert is_sleeping(engine) is (path == "/sleep")
