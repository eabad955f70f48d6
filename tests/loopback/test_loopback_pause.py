"""The three pause modes: their effect on requests in flight, and what the status endpoints show."""

from __future__ import annotations

import socket
import time

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from loopback_client import (
    SLOW_STEPS,
    background,
    call,
    fresh,
    generate,
    get,
    ids,
    load,
    pause,
    post,
    prompt_body,
    release,
    resume,
    running,
    start_generate,
    stays_silent,
    unpause,
    until,
)

LONG = 70


@pytest.mark.parametrize("mode", ["abort", "retract", "in_place"])
def test_every_mode_closes_the_gate_and_is_idempotent(engine: LoopbackProcess, mode: str) -> None:
    assert [pause(engine, mode).status for _ in range(2)] == [200, 200]
    assert pause(engine, mode).json == {"message": "Generation paused successfully.", "status": "ok"}
    assert (get(engine, "/ready").status, get(engine, "/ping").status) == (503, 200)
    held = start_generate(engine, "hello", 4)
    stays_silent(held, 0.1)
    assert unpause(engine).json == {"message": "Generation continued successfully.", "status": "ok"}
    assert len(held.result(5)["output_ids"]) == 4
    assert get(engine, "/ready").status == 200


def test_continue_is_accepted_when_not_paused(engine: LoopbackProcess) -> None:
    assert unpause(engine).status == 200


def test_abort_returns_when_all_has_ended_with_what_there_was(slow_engine: LoopbackProcess) -> None:
    truth = ids(slow_engine, "abort me", LONG)
    flights = [start_generate(slow_engine, "abort me", LONG) for _ in range(2)]
    running(slow_engine, 2)
    assert pause(slow_engine, "abort").status == 200
    assert all(flight.done() or flight.result(1) for flight in flights)
    for flight in flights:
        reply = flight.result()
        assert reply["meta_info"]["finish_reason"]["type"] == "abort"
        assert reply["meta_info"]["finish_reason"]["message"] == "Aborted"
        assert reply["output_ids"] == truth[: len(reply["output_ids"])]
    assert post(slow_engine, "/flush_cache").status == 200
    unpause(slow_engine)


def test_retract_returns_at_once_and_the_final_output_is_the_same(slow_engine: LoopbackProcess) -> None:
    truth = ids(slow_engine, "keep me", LONG)
    post(slow_engine, "/flush_cache")
    flight = start_generate(slow_engine, "keep me", LONG)
    running(slow_engine, 1)
    began = time.monotonic()
    pause(slow_engine, "retract")
    assert time.monotonic() - began < 0.5
    assert post(slow_engine, "/flush_cache").status == 200  # though it is queued
    assert post(slow_engine, "/flush_cache?timeout=0.2").status == 400  # because it is queued
    stays_silent(flight)
    unpause(slow_engine)
    reply = flight.result(10)
    assert reply["output_ids"] == truth
    assert reply["meta_info"]["num_retractions"] == 1
    assert reply["meta_info"]["finish_reason"] == {"type": "length", "length": LONG}


@pytest.mark.slow
def test_a_retracted_request_survives_a_whole_release() -> None:
    with fresh(*SLOW_STEPS, weights_backup=True) as engine:
        truth = ids(engine, "keep me", LONG)
        flight = start_generate(engine, "keep me", LONG)
        running(engine, 1)
        pause(engine, "retract")
        assert release(engine, "kv_cache", "weights").status == 200
        assert resume(engine, "kv_cache", "weights").status == 200
        unpause(engine)
        assert flight.result(10)["output_ids"] == truth


def test_in_place_freezes_and_goes_on(slow_engine: LoopbackProcess) -> None:
    truth = ids(slow_engine, "freeze me", LONG)
    flight = start_generate(slow_engine, "freeze me", LONG)
    running(slow_engine, 1)
    pause(slow_engine, "in_place")
    assert post(slow_engine, "/flush_cache").text == "Flush cache failed.\n"
    stays_silent(flight)
    unpause(slow_engine)
    reply = flight.result(10)
    assert reply["output_ids"] == truth
    assert reply["meta_info"]["num_retractions"] == 0


def test_in_place_then_retract_drains(slow_engine: LoopbackProcess) -> None:
    flight = start_generate(slow_engine, "freeze me", LONG)
    running(slow_engine, 1)
    pause(slow_engine, "in_place")
    pause(slow_engine, "retract")
    assert post(slow_engine, "/flush_cache").status == 200
    unpause(slow_engine)
    assert len(flight.result(10)["output_ids"]) == LONG


def test_retract_then_abort_ends_what_was_queued(slow_engine: LoopbackProcess) -> None:
    flight = start_generate(slow_engine, "hello", LONG)
    running(slow_engine, 1)
    pause(slow_engine, "retract")
    held = start_generate(slow_engine, "held", 4)
    stays_silent(held, 0.1)
    assert pause(slow_engine, "abort").status == 200
    assert flight.result(5)["meta_info"]["finish_reason"]["message"] == "Abort in waiting queue"
    stays_silent(held, 0.1)  # it never reached the scheduler
    unpause(slow_engine)
    assert len(held.result(5)["output_ids"]) == 4


def test_abort_during_in_place_takes_effect_after_continue(slow_engine: LoopbackProcess) -> None:
    flight = start_generate(slow_engine, "hello", LONG, rid="frozen")
    running(slow_engine, 1)
    pause(slow_engine, "in_place")
    post(slow_engine, "/abort_request", {"rid": "frozen"})
    stays_silent(flight)
    unpause(slow_engine)
    assert flight.result(5)["meta_info"]["finish_reason"]["message"] == "Aborted"


@pytest.mark.parametrize("mode", ["retract", "in_place"])
def test_loads_freeze_while_the_scheduler_is_paused(slow_engine: LoopbackProcess, mode: str) -> None:
    flight = start_generate(slow_engine, "count me", LONG)
    running(slow_engine, 1)
    pause(slow_engine, mode)
    get(slow_engine, "/server_info")  # a round trip through the scheduler: the pause has taken effect
    first = load(slow_engine)
    until(lambda: time.time() - load(slow_engine)["timestamp"] > 0.4)
    assert load(slow_engine) == first
    assert first["num_running_reqs"] == 1  # the last value before the pause, in either mode
    unpause(slow_engine)
    flight.result(10)
    until(lambda: load(slow_engine)["timestamp"] > first["timestamp"])


def test_loads_go_on_after_an_abort(slow_engine: LoopbackProcess) -> None:
    pause(slow_engine, "abort")
    first = load(slow_engine)["timestamp"]
    until(lambda: load(slow_engine)["timestamp"] > first)
    unpause(slow_engine)


def test_metrics_change_once_at_a_retract(slow_engine: LoopbackProcess) -> None:
    flight = start_generate(slow_engine, "count me", LONG)
    running(slow_engine, 1)
    pause(slow_engine, "retract")
    until(lambda: 'num_running_reqs{model_name="loopback"} 0' in get(slow_engine, "/metrics").text)
    assert 'num_queue_reqs{model_name="loopback"} 1' in get(slow_engine, "/metrics").text
    assert 'http_requests_active{endpoint="/generate",method="POST"} 1' in get(slow_engine, "/metrics").text
    unpause(slow_engine)
    flight.result(10)


def test_a_held_request_is_invisible_and_cannot_be_aborted(engine: LoopbackProcess) -> None:
    pause(engine, "abort")
    held = start_generate(engine, "hello", 4, rid="held-1")
    stays_silent(held, 0.2)
    assert (load(engine)["num_running_reqs"], load(engine)["num_waiting_reqs"]) == (0, 0)
    assert post(engine, "/abort_request", {"rid": "held-1"}).status == 200
    stays_silent(held, 0.2)
    assert post(engine, "/flush_cache").status == 200  # the scheduler really is idle
    unpause(engine)
    assert held.result(5)["meta_info"]["finish_reason"]["type"] == "length"


def test_a_held_request_runs_although_its_client_has_disconnected(slow_engine: LoopbackProcess) -> None:
    pause(slow_engine, "abort")
    with pytest.raises(TimeoutError):
        call(slow_engine, "POST", "/generate", prompt_body("without a client", 60), timeout=0.2)
    unpause(slow_engine)
    running(slow_engine, 1)
    running(slow_engine, 0)


def test_a_held_stream_has_its_headers_and_no_event(engine: LoopbackProcess) -> None:
    pause(engine, "abort")
    body = b'{"text": "hello", "stream": true, "sampling_params": {"max_new_tokens": 2}}'
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", engine.port), timeout=5) as connection:
        connection.sendall(head + body)
        received = connection.recv(4096)
        assert received.startswith(b"HTTP/1.1 200")
        assert b"data:" not in received
        unpause(engine)
        while chunk := connection.recv(4096):
            received += chunk
    assert b"[DONE]" in received


def test_a_stream_left_by_its_client_is_aborted(slow_engine: LoopbackProcess) -> None:
    body = b'{"text": "hello", "stream": true, "sampling_params": {"max_new_tokens": 900}}'
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", slow_engine.port), timeout=5) as connection:
        connection.sendall(head + body)
        while b"data:" not in connection.recv(65536):
            pass
    running(slow_engine, 0)


def test_abort_matches_a_prefix(slow_engine: LoopbackProcess) -> None:
    flights = {rid: start_generate(slow_engine, rid, LONG, rid=rid) for rid in ("p-1", "p-10", "q-1")}
    running(slow_engine, 3)
    post(slow_engine, "/abort_request", {"rid": "p-1"})
    kinds = {rid: flight.result(10)["meta_info"]["finish_reason"]["type"] for rid, flight in flights.items()}
    assert kinds == {"p-1": "abort", "p-10": "abort", "q-1": "length"}


@pytest.mark.parametrize("body", [{}, {"rid": ""}, {"rid": "nobody"}])
def test_abort_of_nothing_is_ignored(slow_engine: LoopbackProcess, body: dict[str, str]) -> None:
    flight = start_generate(slow_engine, "hello", 40)
    running(slow_engine, 1)
    reply = post(slow_engine, "/abort_request", body)
    assert (reply.status, reply.text) == (200, "")
    assert flight.result(10)["meta_info"]["finish_reason"]["type"] == "length"


def test_abort_all_ends_running_and_waiting() -> None:
    with fresh(*SLOW_STEPS, "--max-running-requests", "1") as engine:
        first, second = start_generate(engine, "one", LONG), start_generate(engine, "two", LONG)
        until(lambda: (load(engine)["num_running_reqs"], load(engine)["num_waiting_reqs"]) == (1, 1))
        post(engine, "/abort_request", {"abort_all": True})
        messages = sorted(each.result(5)["meta_info"]["finish_reason"]["message"] for each in (first, second))
    assert messages == ["Abort in waiting queue", "Aborted"]


def test_flush_of_a_busy_engine_fails_or_waits(slow_engine: LoopbackProcess) -> None:
    flight = start_generate(slow_engine, "hello", LONG)
    running(slow_engine, 1)
    assert post(slow_engine, "/flush_cache").text == "Flush cache failed.\n"
    assert post(slow_engine, "/flush_cache?timeout=0.1").text == "Timed out waiting for idle state."
    assert get(slow_engine, "/flush_cache?timeout=10").text.startswith("Cache flushed.\n")
    assert flight.done() or flight.result(1)


def test_flushes_take_turns(slow_engine: LoopbackProcess) -> None:
    flight = start_generate(slow_engine, "hello", LONG)
    running(slow_engine, 1)
    pause(slow_engine, "in_place")
    began = time.monotonic()
    flushes = [background(lambda: post(slow_engine, "/flush_cache?timeout=0.2")) for _ in range(2)]
    assert [flush.result(5).status for flush in flushes] == [400, 400]
    assert time.monotonic() - began >= 0.4
    unpause(slow_engine)
    flight.result(10)


def test_a_flush_drops_the_prefix_cache(engine: LoopbackProcess) -> None:
    generate(engine, "c" * 40)
    assert generate(engine, "c" * 40)["meta_info"]["cached_tokens"] == 32
    assert call(engine, "POST", "/flush_cache").status == 200
    assert generate(engine, "c" * 40)["meta_info"]["cached_tokens"] == 0


@pytest.mark.parametrize("mode", ["abort", "retract", "in_place"])
def test_health_while_paused_poisons_ready(engine: LoopbackProcess, mode: str) -> None:
    pause(engine, mode)
    assert get(engine, "/health").status == 503
    unpause(engine)
    assert (get(engine, "/ready").status, get(engine, "/ping").status) == (503, 503)
    assert len(ids(engine, "hello", 4)) == 4  # though it serves
    assert get(engine, "/health").status == 200
    assert (get(engine, "/ready").status, get(engine, "/ping").status) == (200, 200)


def test_health_of_a_busy_engine_takes_the_others_tokens_as_proof(slow_engine: LoopbackProcess) -> None:
    flight = start_generate(slow_engine, "hello", LONG, stream=False)
    running(slow_engine, 1)
    assert get(slow_engine, "/health_generate").status == 200
    flight.result(10)


def test_health_is_good_while_released() -> None:
    with fresh() as engine:
        release(engine, "weights", "kv_cache")
        assert get(engine, "/health").status == 200
