"""vLLM's dialect: calls that overtake each other. A 200 from a wait means that the engine was idle, and no more."""

from __future__ import annotations

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from loopback_client import background, stays_silent, until
from vllm_client import fresh, gauge, is_paused, is_sleeping, ok, post, stream, streams, text_of

LONG = 40


def test_a_resume_leaves_the_wait_hanging_until_the_engine_is_idle(slow_vllm: LoopbackProcess) -> None:
    flights = streams(slow_vllm, 2, LONG)
    pausing = background(lambda: post(slow_vllm, "/pause?mode=wait"))
    until(lambda: is_paused(slow_vllm))
    ok(post(slow_vllm, "/resume"))
    assert not is_paused(slow_vllm)
    more = stream(slow_vllm, "new traffic prolongs it", LONG + 20)
    [each.ended() for each in flights]
    assert more.open
    assert not pausing.done()
    more.ended()
    assert ok(pausing.result(5)) == {"status": "paused"}
    assert not is_paused(slow_vllm)  # all the same


@pytest.mark.parametrize("undo", ["/resume", "/wake_up"])
def test_a_sleep_that_waits_is_carried_out_after_it_was_undone(slow_vllm: LoopbackProcess, undo: str) -> None:
    flight = stream(slow_vllm, "hello", LONG)
    until(lambda: flight.text)
    going = background(lambda: post(slow_vllm, "/sleep?mode=wait"))
    until(lambda: is_paused(slow_vllm))
    ok(post(slow_vllm, undo))
    assert (is_paused(slow_vllm), is_sleeping(slow_vllm)) == (False, False)
    assert ok(going.result(10)) == {"status": "sleeping", "level": 1}
    assert (is_paused(slow_vllm), is_sleeping(slow_vllm)) == (False, True)
    flight.ended()


def test_a_keep_answers_a_wait_whose_requests_have_not_ended(slow_vllm: LoopbackProcess) -> None:
    flights = streams(slow_vllm, 8, LONG)
    pausing = background(lambda: post(slow_vllm, "/pause?mode=wait"))
    until(lambda: is_paused(slow_vllm))
    ok(post(slow_vllm, "/pause?mode=keep"))
    assert ok(pausing.result(5)) == {"status": "paused"}
    assert all(each.open for each in flights)
    post(slow_vllm, "/resume")
    assert {each.ended().finish for each in flights} == {"length"}


def test_a_wait_after_a_keep_that_cleared_returns_with_all_of_them_held(slow_vllm: LoopbackProcess) -> None:
    flights = streams(slow_vllm, 8, LONG)
    ok(post(slow_vllm, "/pause?mode=keep"))
    ok(post(slow_vllm, "/pause?mode=wait", timeout=2))
    assert all(each.open for each in flights)
    post(slow_vllm, "/resume")
    assert {each.ended().finish for each in flights} == {"length"}


def test_a_wait_after_a_keep_that_did_not_clear_really_drains(slow_vllm: LoopbackProcess) -> None:
    flights = streams(slow_vllm, 8, LONG)
    ok(post(slow_vllm, "/pause?mode=keep&clear_cache=false"))
    ok(post(slow_vllm, "/pause?mode=wait"))
    assert {each.ended(2).finish for each in flights} == {"length"}


def test_an_abort_answers_a_wait(slow_vllm: LoopbackProcess) -> None:
    flights = streams(slow_vllm, 2, LONG)
    pausing = background(lambda: post(slow_vllm, "/pause?mode=wait"))
    until(lambda: is_paused(slow_vllm))
    ok(post(slow_vllm, "/pause"))
    assert ok(pausing.result(5)) == {"status": "paused"}
    assert {each.ended().finish for each in flights} == {"abort"}


def test_a_caller_that_leaves_a_wait_leaves_it_paused(slow_vllm: LoopbackProcess) -> None:
    flight = stream(slow_vllm, "hello", LONG)
    until(lambda: flight.text)
    with pytest.raises(TimeoutError):
        post(slow_vllm, "/pause?mode=wait", timeout=0.1)
    assert flight.ended().finish == "length"
    assert is_paused(slow_vllm)
    ok(post(slow_vllm, "/pause?mode=wait", timeout=2))  # asked twice, it is the proof that the engine is idle


def test_the_last_wake_resumes_and_a_keep_closes_again(slow_vllm: LoopbackProcess) -> None:
    truth = text_of(slow_vllm, "hello", LONG)
    flight = stream(slow_vllm, "hello", LONG)
    until(lambda: flight.text)
    ok(post(slow_vllm, "/pause?mode=keep"))
    ok(post(slow_vllm, "/sleep?mode=keep"))
    ok(post(slow_vllm, "/wake_up"))
    ok(post(slow_vllm, "/pause?mode=keep&clear_cache=false"))
    assert is_paused(slow_vllm)
    assert gauge(slow_vllm, "engine_sleep_state", sleep_state="awake") == 1
    assert flight.open
    post(slow_vllm, "/resume")
    assert flight.ended().text == truth


def test_requests_run_on_an_engine_that_is_said_to_sleep_and_does_not() -> None:
    with fresh(cpu_like=True) as engine:
        ok(post(engine, "/sleep"))
        held = background(lambda: text_of(engine, "hello", 4))
        stays_silent(held)
        ok(post(engine, "/resume"))
        assert len(held.result(5)) == 4
        assert (is_paused(engine), is_sleeping(engine)) == (False, True)
