"""Each fault has the effect that its name says."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from lifecycle.adapters.loopback import LoopbackProcess, make_weights
from lifecycle.adapters.loopback.faults import Fault, FaultHook, parse_fault
from loopback_client import (
    GONE,
    alive,
    background,
    checksum,
    fresh,
    get,
    load,
    pause,
    post,
    pss_mib,
    release,
    resume,
    stays_silent,
    unpause,
    until,
)

MIB = 64


@pytest.fixture(scope="module")
def faulty() -> Iterator[LoopbackProcess]:
    """An engine whose faults can be set while it runs."""
    with fresh(weights_mib=MIB, kv_mib=MIB, allow_faults=True) as started:
        yield started


def set_fault(engine: LoopbackProcess, **faults: str | None) -> None:
    assert post(engine, "/_fault", faults).status == 200


def test_release_keep_claims_and_keeps() -> None:
    with fresh(weights_mib=MIB, faults=["release=keep"]) as engine:
        before = pss_mib(engine)
        assert get(engine, "/server_info").json["enable_memory_saver"] is True
        assert release(engine).status == 200
        assert pss_mib(engine) == pytest.approx(before, abs=3)
        assert resume(engine).status == 200


def test_release_leak_frees_all_but_so_much() -> None:
    with fresh(weights_mib=MIB, kv_mib=MIB, ranks=2, faults=["release=leak:40"]) as engine:
        before = pss_mib(engine)
        release(engine)
        assert before - pss_mib(engine) == pytest.approx(2 * MIB - 40, abs=3)
        resume(engine)
        assert pss_mib(engine) == pytest.approx(before, abs=3)


def test_release_late_answers_first(faulty: LoopbackProcess) -> None:
    set_fault(faulty, release="late:0.5")
    before = pss_mib(faulty)
    release(faulty, "kv_cache")
    assert pss_mib(faulty) == pytest.approx(before, abs=3)
    until(lambda: before - pss_mib(faulty) > MIB - 3)
    set_fault(faulty, release=None)
    resume(faulty, "kv_cache")


def test_restore_zeros_loses_even_what_was_backed_up() -> None:
    with fresh(weights_backup=True, faults=["restore=zeros"]) as engine:
        proof = checksum(engine)
        release(engine, "weights")
        assert resume(engine, "weights").status == 200
        assert checksum(engine) != proof


def test_update_label_moves_no_weights(faulty: LoopbackProcess, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = make_weights(tmp_path_factory.mktemp("w") / "other", seed=9, weights_mib=MIB)
    proof = checksum(faulty)
    set_fault(faulty, update="label")
    body = {"model_path": str(other), "weight_version": "v9"}
    assert post(faulty, "/update_weights_from_disk", body).json["success"] is True
    set_fault(faulty, update=None)
    assert get(faulty, "/model_info").json["weight_version"] == "v9"
    assert checksum(faulty) == proof


def test_loads_frozen_never_change(faulty: LoopbackProcess) -> None:
    set_fault(faulty, loads="frozen")
    first = load(faulty)
    post(faulty, "/generate", {"text": "hello"})
    assert load(faulty) == first
    set_fault(faulty, loads=None)


@pytest.mark.parametrize("name", ["pause", "continue", "flush", "release", "resume", "update"])
def test_a_call_that_hangs_has_no_effect(faulty: LoopbackProcess, name: str) -> None:
    set_fault(faulty, **{name: "hang"})
    hanging = background(lambda: CALLS[name](faulty))
    stays_silent(hanging, 0.15)
    set_fault(faulty, **{name: None})
    assert get(faulty, "/ready").status == 200
    with pytest.raises(TimeoutError):
        hanging.result(0)


CALLS = {
    "pause": lambda engine: pause(engine, "abort"),
    "continue": unpause,
    "flush": lambda engine: post(engine, "/flush_cache"),
    "release": lambda engine: release(engine, "weights"),
    "resume": lambda engine: resume(engine, "weights"),
    "update": lambda engine: post(engine, "/update_weights_from_disk", {"model_path": str(engine.weights)}),
}


def test_a_lost_answer_has_its_effect(faulty: LoopbackProcess) -> None:
    set_fault(faulty, pause="lost")
    with pytest.raises(GONE):
        pause(faulty, "abort")
    set_fault(faulty, pause=None)
    assert get(faulty, "/ready").status == 503
    unpause(faulty)


def test_a_slow_call_has_its_effect_before_its_answer(faulty: LoopbackProcess) -> None:
    set_fault(faulty, pause="slow:0.5")
    began = time.monotonic()
    pausing = background(lambda: pause(faulty, "abort"))
    until(lambda: get(faulty, "/ready").status == 503)
    assert not pausing.done()
    assert pausing.result(5).status == 200
    assert time.monotonic() - began >= 0.5
    set_fault(faulty, pause=None)
    unpause(faulty)


def test_a_slow_call_is_answered_once_its_fault_is_taken_back(faulty: LoopbackProcess) -> None:
    set_fault(faulty, pause="slow:60")
    pausing = background(lambda: pause(faulty, "abort"))
    until(lambda: get(faulty, "/ready").status == 503)
    stays_silent(pausing, 0.15)
    set_fault(faulty, pause=None)
    assert pausing.result(5).status == 200
    unpause(faulty)


def test_an_error_has_no_effect_and_one_after_has(faulty: LoopbackProcess) -> None:
    set_fault(faulty, pause="error:503")
    assert pause(faulty, "abort").status == 503
    assert get(faulty, "/ready").status == 200
    set_fault(faulty, pause="error_after")
    assert pause(faulty, "abort").status == 500
    assert get(faulty, "/ready").status == 503
    set_fault(faulty, pause=None)
    unpause(faulty)


def test_a_call_can_kill() -> None:
    with fresh(faults=["flush=die"], ranks=2) as engine:
        with pytest.raises(GONE):
            post(engine, "/flush_cache")
        assert engine.wait(5) == -signal.SIGKILL
        until(lambda: not any(map(alive, engine.pids)))


@pytest.mark.parametrize(
    "text", ["nonsense=hang", "release", "release=", "release=nonsense", "release=leak", "release=leak:x", "pause=keep"]
)
def test_an_unknown_fault_is_refused_with_what_there_is(faulty: LoopbackProcess, text: str) -> None:
    with pytest.raises(ValueError, match=r"fault|number"):
        parse_fault(text)
    name, _, value = text.partition("=")
    assert post(faulty, "/_fault", {name: value or "?"}).status == 400


def test_faults_parse() -> None:
    assert parse_fault("restore=zeros") == ("resume", Fault("zeros"))
    assert parse_fault("release=leak:100") == ("release", Fault("leak", 100.0))
    assert parse_fault("pause=error_after:502") == ("pause", Fault("error_after", 502.0))


def test_a_hook_without_faults_keeps_nothing() -> None:
    hook = FaultHook(())
    assert (hook.kept_bytes(100), hook.release_delay_s(), hook.of("release")) == (0, 0.0, None)
