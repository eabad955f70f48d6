"""vLLM's dialect: what ends an engine core, what clients are told then, and how the server goes."""

from __future__ import annotations

import os
import signal

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from loopback_client import GONE, SLOW_STEPS, alive, background, until
from vllm_client import fresh, get, is_paused, ok, post, prompt, stream, streams, text_of

pytestmark = pytest.mark.slow  # each test starts an engine, and ends it

LONG = 60
LINGERS = ("--death-delay-s", "1.0")
DEAD = "EngineCore encountered an issue"
RELOAD = "/collective_rpc"


def reload(path: str | None) -> dict[str, object]:
    return {"method": "reload_weights", "kwargs": {"weights_path": path} if path else {}}


def ended(engine: LoopbackProcess) -> None:
    """The server has exited by itself, and no process of it is left."""
    assert engine.wait(10) == 0
    until(lambda: not any(map(alive, engine.pids)))


def test_a_killed_core_is_told_to_health_and_to_every_client() -> None:
    with fresh(*SLOW_STEPS, *LINGERS) as engine:
        flights = streams(engine, 2, LONG)
        answered = background(lambda: post(engine, "/v1/completions", prompt("hello", LONG)))
        os.kill(engine.rank_pids[0], signal.SIGKILL)
        until(lambda: get(engine, "/health").status == 503)
        assert get(engine, "/health").text == ""
        for flight in flights:
            error, done = flight.ended().events[-2:]
            assert (DEAD in error, '"code": 500' in error, done) == (True, True, "[DONE]")
        assert answered.result(5).status == 500
        assert DEAD in answered.result().json["error"]["message"]
        for call in ("/resume", "/sleep", "/v1/completions"):
            assert DEAD in post(engine, call, prompt("hello", 1)).text
        ended(engine)


def test_a_reload_that_failed_ends_the_engine_at_the_next_inference() -> None:
    with fresh(*LINGERS) as engine:
        assert text_of(engine, "hello", 2)
        reply = post(engine, RELOAD, reload("/no/such/checkpoint"))
        assert reply.status == 500
        assert reply.json["error"]["message"].startswith("Call to collective_rpc method failed: ")
        assert (get(engine, "/health").status, is_paused(engine)) == (200, False)
        assert DEAD in post(engine, "/v1/completions", prompt("hello", 2)).text
        until(lambda: not alive(engine.rank_pids[0]))
        assert get(engine, "/health").status == 503  # by a server that has no engine core any more
        ended(engine)
        assert "meta" in engine.stderr_tail()


def test_a_reload_repairs_one_that_failed_if_it_names_the_path_again() -> None:
    with fresh() as engine:
        truth = text_of(engine, "hello", 4)
        assert post(engine, RELOAD, reload("/no/such/checkpoint")).status == 500
        assert post(engine, RELOAD, reload(None)).status == 500  # the path that failed is the model's now
        ok(post(engine, RELOAD, reload(str(engine.weights))))
        assert text_of(engine, "hello", 4) == truth


@pytest.mark.parametrize("asleep", ["/sleep", "/sleep?level=2"])
def test_inference_on_sleeping_memory_ends_the_engine(asleep: str) -> None:
    with fresh(*LINGERS) as engine:
        ok(post(engine, asleep))
        ok(post(engine, "/resume"))  # which nothing prevents
        assert DEAD in post(engine, "/v1/completions", prompt("hello", 2)).text
        ended(engine)
        assert "illegal memory access" in engine.stderr_tail()


def test_a_sleep_that_was_undone_ends_the_engine_at_the_next_request() -> None:
    with fresh(*SLOW_STEPS, *LINGERS) as engine:
        flight = stream(engine, "hello", LONG)
        going = background(lambda: post(engine, "/sleep?mode=wait"))
        until(lambda: is_paused(engine))
        ok(post(engine, "/resume"))
        ok(going.result(10))
        assert flight.ended().finish == "length"
        assert DEAD in post(engine, "/v1/completions", prompt("hello", 2)).text
        ended(engine)


def test_a_reload_into_sleeping_memory_ends_the_engine() -> None:
    with fresh(*LINGERS) as engine:
        ok(post(engine, "/sleep?level=2"))
        assert "illegal memory access" in post(engine, RELOAD, reload(None)).json["error"]["message"]
        ok(post(engine, "/wake_up"))
        assert "illegal memory access" in post(engine, RELOAD, reload(None)).json["error"]["message"]  # it stays
        assert DEAD in post(engine, "/v1/completions", prompt("hello", 2)).text
        ended(engine)


@pytest.mark.parametrize("state", [(), ("/pause?mode=keep",)], ids=["serving", "paused"])
def test_sigterm_aborts_at_once(state: tuple[str, ...]) -> None:
    with fresh(*SLOW_STEPS) as engine:
        flights = streams(engine, 2, 400)
        for path in state:
            ok(post(engine, path))
        os.kill(engine.pid, signal.SIGTERM)
        assert {each.ended().finish for each in flights} == {"abort"}
        assert engine.wait(5) == 0


def test_sigterm_with_a_timeout_lets_them_finish_and_takes_no_more() -> None:
    with fresh(*SLOW_STEPS, "--shutdown-timeout-s", "20") as engine:
        flights = streams(engine, 2, LONG)
        os.kill(engine.pid, signal.SIGTERM)
        refused = until(lambda: _refused(engine))
        assert "cannot schedule new futures after shutdown" in refused.json["error"]["message"]
        assert get(engine, "/health").status == 200
        assert {each.ended().finish for each in flights} == {"length"}
        assert engine.wait(5) == 0
        with pytest.raises(GONE):
            get(engine, "/health")


def _refused(engine: LoopbackProcess) -> object:
    """The answer to a new request, once one is refused."""
    reply = post(engine, "/v1/completions", prompt("hello", 1))
    return reply if reply.status == 500 else None
