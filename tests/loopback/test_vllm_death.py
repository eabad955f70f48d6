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


def status(engine: LoopbackProcess) -> dict[str, object]:
    """What its front end says of the one engine core."""
    [core] = ok(get(engine, "/fault_tolerance/status"))["engines"]
    return dict(core)


def test_a_core_that_lost_a_rank_waits_and_answers_nothing() -> None:
    with fresh(*SLOW_STEPS, "--enable-fault-tolerance", "--recovery-timeout-s", "2", ranks=2) as engine:
        assert status(engine) == {"id": 0, "status": "healthy"}
        flights = streams(engine, 2, LONG)
        os.kill(engine.rank_pids[1], signal.SIGKILL)
        assert {each.ended().finish for each in flights} == {"abort"}
        until(lambda: status(engine) == {"id": 0, "status": "dead"})
        assert get(engine, "/health").status == 200
        with pytest.raises(TimeoutError):
            get(engine, "/is_paused", timeout=0.3)
        assert alive(engine.rank_pids[0]), "the other rank holds its memory"
        ended(engine)


def test_a_core_that_failed_says_by_what() -> None:
    with fresh("--enable-fault-tolerance", "--recovery-timeout-s", "1") as engine:
        assert post(engine, RELOAD, reload("/no/such/checkpoint")).status == 500
        assert ok(post(engine, "/v1/completions", prompt("hello", 2)))["choices"][0]["finish_reason"] == "abort"
        assert status(engine) == {"id": 0, "status": "unhealthy", "fault_info": "RankFailed"}
        ended(engine)


def test_a_call_may_end_a_rank() -> None:
    with fresh(*LINGERS, "--fault", "release=end_rank:0") as engine:
        assert DEAD in post(engine, "/sleep").text
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
