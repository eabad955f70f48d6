"""vLLM's dialect with eight streams in flight: what each call does to them, to new requests, and to the counts."""

from __future__ import annotations

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from loopback_client import SLOW_STEPS, background, stays_silent, until
from vllm_client import (
    Stream,
    fresh,
    gauge,
    get,
    is_paused,
    is_sleeping,
    ok,
    post,
    prompt,
    running,
    serving,
    stream,
    streams,
    text_of,
)

LONG = 40
MANY = 8
SLEEPS = ["/sleep?level=0", "/sleep?level=1", "/sleep?level=2"]


def load(engine: LoopbackProcess) -> int:
    value: int = ok(get(engine, "/load"))["server_load"]
    return value


@pytest.fixture(scope="module")
def texts(slow_vllm_process: LoopbackProcess) -> list[str]:
    """What the eight streams say when nobody disturbs them."""
    return [each.ended().text for each in streams(serving(slow_vllm_process), MANY, LONG)]


def frozen(engine: LoopbackProcess, flights: list[Stream], before: float) -> bool:
    """Every token that was generated since `before` has come, and none is generated any more."""
    until(lambda: before + sum(len(each.text) for each in flights) >= gauge(engine, "generation_tokens_total"))
    texts = [each.text for each in flights]
    get(engine, "/is_paused")  # a round trip through the core
    return texts == [each.text for each in flights] and all(each.open for each in flights)


def aborted(flights: list[Stream], texts: list[str]) -> None:
    """Each stream ended with a chunk that says abort, after a part of its text."""
    for flight, whole in zip(flights, texts, strict=True):
        assert flight.ended().finish == "abort"
        assert flight.events[-1] == "[DONE]"
        assert whole.startswith(flight.text)
        assert 0 < len(flight.text) < LONG


@pytest.mark.parametrize("path", ["/pause", *SLEEPS])
def test_an_abort_ends_them_with_what_there_was(slow_vllm: LoopbackProcess, path: str, texts: list[str]) -> None:
    flights = streams(slow_vllm, MANY, LONG)
    assert post(slow_vllm, path).status == 200
    aborted(flights, texts)
    assert (is_paused(slow_vllm), is_sleeping(slow_vllm)) == (True, True)
    until(lambda: gauge(slow_vllm, "num_requests_running") == 0)


def test_an_abort_of_one_that_is_no_stream(slow_vllm: LoopbackProcess) -> None:
    flight = background(lambda: post(slow_vllm, "/v1/completions", prompt("hello", LONG)))
    running(slow_vllm, 1)
    post(slow_vllm, "/pause")
    choice = ok(flight.result(5))["choices"][0]
    assert choice["finish_reason"] == "abort"
    assert 0 < len(choice["text"]) < LONG


@pytest.mark.parametrize("path", ["/pause", "/pause?mode=wait", "/pause?mode=keep", *SLEEPS[:2]])
def test_new_requests_are_queued_silently(slow_vllm: LoopbackProcess, path: str) -> None:
    post(slow_vllm, path)
    queued = stream(slow_vllm, "hello", 4)
    answered = background(lambda: post(slow_vllm, "/v1/completions", prompt("hello", 4)))
    stays_silent(answered)
    assert (queued.status, queued.events) == (200, [])
    assert gauge(slow_vllm, "num_requests_waiting") == 0  # since no step has counted them
    assert load(slow_vllm) == 2
    post(slow_vllm, "/wake_up")
    assert queued.ended().finish == ok(answered.result(5))["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(("clear", "hits"), [("true", 0), ("false", 32)])
def test_an_abort_clears_the_prefix_cache_or_not(slow_vllm: LoopbackProcess, clear: str, hits: int) -> None:
    text = "p" * 40
    text_of(slow_vllm, text, 1)
    before = gauge(slow_vllm, "prefix_cache_hits_total")
    post(slow_vllm, f"/pause?clear_cache={clear}")
    post(slow_vllm, "/resume")
    text_of(slow_vllm, text, 1)
    assert gauge(slow_vllm, "prefix_cache_hits_total") - before == hits


def test_a_wait_returns_when_they_have_run_to_their_end(slow_vllm: LoopbackProcess, texts: list[str]) -> None:
    flights = streams(slow_vllm, MANY, LONG)
    pausing = background(lambda: post(slow_vllm, "/pause?mode=wait"))
    until(lambda: is_paused(slow_vllm))
    assert not pausing.done()
    assert is_sleeping(slow_vllm)
    late = [stream(slow_vllm, "late", 4) for _ in range(3)]
    until(lambda: gauge(slow_vllm, "num_requests_waiting") == 3)  # true while it drains
    assert load(slow_vllm) == 11
    assert ok(pausing.result(20)) == {"status": "paused"}
    assert [each.ended().text for each in flights] == texts
    assert {each.finish for each in flights} == {"length"}
    assert (gauge(slow_vllm, "num_requests_running"), gauge(slow_vllm, "num_requests_waiting")) == (0, 3)
    assert all(each.open and not each.events for each in late)
    post(slow_vllm, "/resume")
    assert {each.ended().finish for each in late} == {"length"}


@pytest.mark.parametrize(("clear", "preempted", "reset"), [("true", MANY, True), ("false", 0, False)])
def test_a_keep_freezes_them_and_their_text_is_the_same(
    slow_vllm: LoopbackProcess, texts: list[str], clear: str, preempted: int, reset: bool
) -> None:
    tokens, before = gauge(slow_vllm, "generation_tokens_total"), gauge(slow_vllm, "num_preemptions_total")
    flights = streams(slow_vllm, MANY, LONG)
    ok(post(slow_vllm, f"/pause?mode=keep&clear_cache={clear}"))
    assert frozen(slow_vllm, flights, tokens)
    assert gauge(slow_vllm, "num_requests_running") == MANY  # frozen too, though they may all be preempted
    assert ok(post(slow_vllm, "/reset_prefix_cache")) == {"success": reset}
    post(slow_vllm, "/resume")
    assert [each.ended().text for each in flights] == texts
    assert {each.finish for each in flights} == {"length"}
    assert gauge(slow_vllm, "num_preemptions_total") - before == preempted


@pytest.mark.slow
def test_who_ran_before_a_keep_runs_before_those_that_waited() -> None:
    with fresh(*SLOW_STEPS, "--max-running-requests", "2") as engine:
        ran = streams(engine, 2, 200)
        waited = stream(engine, "queued", 2)
        ok(post(engine, "/pause?mode=keep"))
        post(engine, "/resume")
        assert waited.ended().finish == "length"
        assert all(len(each.text) > 150 for each in ran)


def test_requests_are_kept_through_a_sleep(slow_vllm: LoopbackProcess, texts: list[str]) -> None:
    tokens = gauge(slow_vllm, "generation_tokens_total")
    flights = streams(slow_vllm, MANY, LONG)
    ok(post(slow_vllm, "/pause?mode=keep"))
    assert ok(post(slow_vllm, "/sleep?mode=keep")) == {"status": "sleeping", "level": 1}
    assert frozen(slow_vllm, flights, tokens)
    late = stream(slow_vllm, "late", 4)
    post(slow_vllm, "/wake_up?tags=weights")
    assert not late.events
    post(slow_vllm, "/wake_up?tags=kv_cache")
    assert [each.ended().text for each in flights] == texts
    assert late.ended().finish == "length"


def test_a_sleep_after_a_keep_aborts_what_was_kept(slow_vllm: LoopbackProcess, texts: list[str]) -> None:
    flights = streams(slow_vllm, MANY, LONG)
    ok(post(slow_vllm, "/pause?mode=keep"))
    ok(post(slow_vllm, "/sleep"))  # whose mode is abort
    aborted(flights, texts)


def test_a_sleep_that_waits_drains_first(slow_vllm: LoopbackProcess) -> None:
    flights = streams(slow_vllm, MANY, LONG)
    going = background(lambda: post(slow_vllm, "/sleep?mode=wait"))
    until(lambda: is_paused(slow_vllm))
    assert ok(going.result(20)) == {"status": "sleeping", "level": 1}
    assert {each.ended().finish for each in flights} == {"length"}


def test_who_leaves_while_paused_is_dropped(slow_vllm: LoopbackProcess) -> None:
    flights = streams(slow_vllm, MANY, LONG)
    ok(post(slow_vllm, "/pause?mode=keep"))
    queued = stream(slow_vllm, "queued", 4)
    assert load(slow_vllm) == MANY + 1
    tokens = gauge(slow_vllm, "generation_tokens_total")
    for each in (flights[0], queued):
        each.leave()
    until(lambda: load(slow_vllm) == MANY - 1)
    until(lambda: gauge(slow_vllm, "num_requests_running") + gauge(slow_vllm, "num_requests_waiting") == MANY - 1)
    had = sum(len(each.text) for each in flights[1:])
    post(slow_vllm, "/resume")
    assert {each.ended().finish for each in flights[1:]} == {"length"}
    assert gauge(slow_vllm, "generation_tokens_total") - tokens == (MANY - 1) * LONG - had


def test_who_leaves_a_call_that_is_no_stream_is_dropped(slow_vllm: LoopbackProcess) -> None:
    ok(post(slow_vllm, "/pause"))
    with pytest.raises(TimeoutError):
        post(slow_vllm, "/v1/completions", prompt("queued", 4), timeout=0.2)
    until(lambda: load(slow_vllm) == 0)
    tokens = gauge(slow_vllm, "generation_tokens_total")
    post(slow_vllm, "/resume")
    assert len(text_of(slow_vllm, "another", 3)) == 3
    assert gauge(slow_vllm, "generation_tokens_total") - tokens == 3


def test_an_abort_of_requests_while_paused_leaves_it_paused(slow_vllm: LoopbackProcess, texts: list[str]) -> None:
    flights = streams(slow_vllm, MANY, LONG)
    ok(post(slow_vllm, "/pause?mode=keep"))
    assert ok(post(slow_vllm, "/abort_requests", {})) == {"status": "aborted", "aborted": MANY}
    aborted(flights, texts)
    assert is_paused(slow_vllm)


@pytest.mark.parametrize("path", ["/pause", "/sleep"])
def test_what_was_only_queued_ends_without_a_word(slow_vllm: LoopbackProcess, path: str) -> None:
    ok(post(slow_vllm, "/pause"))
    queued = stream(slow_vllm, "queued", 4)
    answered = background(lambda: post(slow_vllm, "/v1/completions", prompt("hello", 4)))
    until(lambda: load(slow_vllm) == 2)
    ok(post(slow_vllm, path))
    assert queued.ended().events == ["[DONE]"]
    choice = ok(answered.result(5))["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("", "abort")


def test_an_id_that_the_client_chose_aborts_with_its_index(slow_vllm: LoopbackProcess) -> None:
    flight = stream(slow_vllm, "mine", LONG, {"X-Request-Id": "myreq1"})
    until(lambda: flight.text)
    ok(post(slow_vllm, "/abort_requests", {"request_ids": ["cmpl-myreq1", "myreq1"]}))
    get(slow_vllm, "/is_paused")
    assert flight.open
    ok(post(slow_vllm, "/abort_requests", {"request_ids": ["cmpl-myreq1-0"]}))
    assert flight.ended().finish == "abort"
    assert flight.chunks[0]["id"] == "cmpl-myreq1"


def test_finish_reasons_are_counted(slow_vllm: LoopbackProcess) -> None:
    before = {each: gauge(slow_vllm, "request_success_total", finished_reason=each) for each in ("length", "abort")}
    text_of(slow_vllm, "hello", 2)
    flight = stream(slow_vllm, "hello", LONG)
    until(lambda: flight.text)
    ok(post(slow_vllm, "/pause"))
    flight.ended()
    for reason, count in before.items():
        assert gauge(slow_vllm, "request_success_total", finished_reason=reason) - count == 1
