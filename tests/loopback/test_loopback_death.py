"""Calls that end the engine: its processes are killed, and every connection to it is dropped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from loopback_client import (
    GONE,
    SLOW_STEPS,
    alive,
    background,
    fresh,
    generate,
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

pytestmark = pytest.mark.slow

Act = Callable[[LoopbackProcess], object]


def kills(engine: LoopbackProcess, act: Act) -> None:
    """`act` has its connection dropped, and no process of the engine is left."""
    with pytest.raises(GONE):
        act(engine)
    assert engine.wait(5) == -signal.SIGKILL
    until(lambda: not any(map(alive, engine.pids)))


def test_release_while_a_request_runs(doomed: LoopbackProcess) -> None:
    flight = start_generate(doomed, "hello", 400)
    running(doomed, 1)
    kills(doomed, lambda engine: release(engine, "kv_cache"))
    with pytest.raises(GONE):
        flight.result(5)
    assert "should be called only when server is idle" in _stderr(doomed)


def test_release_breaks_a_stream_mid_body(doomed: LoopbackProcess) -> None:
    stream = background(lambda: post(doomed, "/generate", prompt_body("hello", 400, stream=True)))
    running(doomed, 1)
    kills(doomed, lambda engine: release(engine, "weights"))
    with pytest.raises(GONE):
        stream.result(5)


def test_release_over_a_frozen_batch(doomed: LoopbackProcess) -> None:
    start_generate(doomed, "hello", 400)
    running(doomed, 1)
    pause(doomed, "in_place")
    kills(doomed, release)


def test_release_of_a_waiting_queue_that_is_not_paused() -> None:
    with fresh(*SLOW_STEPS, "--max-running-requests", "1") as engine:
        for prompt in ("one", "two"):
            start_generate(engine, prompt, 400)
        running(engine, 1)
        kills(engine, release)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (lambda engine: release(engine, "kv_cache"), lambda engine: release(engine, "kv_cache")),
        (lambda engine: release(engine, "weights"), lambda engine: release(engine, "weights", "kv_cache")),
        (lambda engine: None, lambda engine: resume(engine, "weights")),
        (lambda engine: release(engine, "kv_cache"), lambda engine: resume(engine)),
        (lambda engine: release(engine, "kv_cache"), lambda engine: resume(engine, "kv_cache", "weights")),
        (lambda engine: (release(engine), resume(engine)), lambda engine: resume(engine, "kv_cache")),
        (lambda engine: None, lambda engine: post(engine, "/update_weights_from_disk", BAD_FORMAT)),
    ],
    ids=[
        "released-twice",
        "released-again-among-others",
        "resumed-not-released",
        "resumed-all-of-some",
        "resumed-one-too-many",
        "resumed-twice",
        "unknown-load-format",
    ],
)
def test_a_wrong_call_is_fatal(first: Act, then: Act) -> None:
    with fresh() as engine:
        first(engine)
        kills(engine, then)


BAD_FORMAT = {"model_path": "anywhere", "load_format": "nonsense"}


def test_released_twice_is_resumed_once_without_a_memory_saver() -> None:
    with fresh(memory_saver=False) as engine:
        assert [release(engine, "weights").status for _ in range(2)] == [200, 200]
        assert resume(engine, "weights").status == 200
        kills(engine, lambda it: resume(it, "weights"))


def test_all_ranks_die_with_the_scheduler() -> None:
    with fresh(ranks=2) as engine:
        kills(engine, lambda it: resume(it, "weights"))


def test_an_idle_server_dies_with_its_rank() -> None:
    with fresh(ranks=2) as engine:
        os.kill(engine.rank_pids[1], signal.SIGKILL)
        assert engine.wait(5) == -signal.SIGKILL
        until(lambda: not any(map(alive, engine.pids)))


def test_abort_over_a_frozen_batch_deadlocks_pause_and_continue(doomed: LoopbackProcess) -> None:
    start_generate(doomed, "hello", 400)
    running(doomed, 1)
    pause(doomed, "in_place")
    with pytest.raises(TimeoutError):
        pause(doomed, "abort", timeout=0.3)
    later = [background(lambda: unpause(doomed)), background(lambda: pause(doomed, "retract"))]
    for each in later:
        stays_silent(each, 0.3)
    assert doomed.returncode is None  # only a kill recovers


def test_a_batch_frozen_too_long_trips_the_watchdog() -> None:
    with fresh(*SLOW_STEPS, "--watchdog-timeout-s", "0.3") as engine:
        start_generate(engine, "hello", 400)
        running(engine, 1)
        pause(engine, "in_place")
        assert engine.wait(5) == -signal.SIGKILL


def test_a_retracted_batch_does_not() -> None:
    with fresh(*SLOW_STEPS, "--watchdog-timeout-s", "0.1") as engine:
        flight = start_generate(engine, "hello", 60)
        running(engine, 1)
        pause(engine, "retract")
        stays_silent(flight, 0.4)
        unpause(engine)
        assert len(flight.result(5)["output_ids"]) == 60


def test_the_death_takes_its_time() -> None:
    with fresh("--death-delay-s", "0.5") as engine:
        call = background(lambda: resume(engine, "weights"))
        stays_silent(call, 0.3)
        with pytest.raises(GONE):
            call.result(5)


def test_back_to_back_releases_of_an_idle_engine_do_no_harm() -> None:
    with fresh() as engine:
        for turn in range(20):
            generate(engine, f"turn {turn}", 3)
            assert release(engine, "kv_cache").status == 200
            assert resume(engine, "kv_cache").status == 200


def _stderr(engine: LoopbackProcess) -> str:
    return engine.stderr_tail()
