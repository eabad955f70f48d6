"""Callers that give up, two at a time, and people who say where an engine is."""

from __future__ import annotations

import asyncio

import pytest
from rig import V1, engine_in, sent, serve_again, serving

from lifecycle import (
    Engine,
    EngineBusy,
    Grade,
    InvalidTransition,
    OperationFailed,
    State,
)
from lifecycle.testing import HANG, HANG_LATE, Act

# callers that give up


async def cancelled_in(engine: Engine, verb: asyncio.Task[object], call: str) -> None:
    """The verb was cancelled while this call was under way, and CancelledError reached its caller."""
    for _ in range(100):
        await asyncio.sleep(0)
    assert any(line.startswith(call) for line in sent(engine))
    verb.cancel()
    with pytest.raises(asyncio.CancelledError):
        await verb


async def test_a_cancelled_release_is_failed_until_recover_has_asked_the_barrier() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("release", HANG_LATE)
    await cancelled_in(engine, asyncio.create_task(engine.release(weights=V1)), "release")
    assert engine.state is State.FAILED
    assert engine.record.uncertain.needs_barrier
    assert engine.busy is None
    with pytest.raises(InvalidTransition):
        await engine.restore_weights()
    engine.adapter.journal.clear()
    await engine.recover()
    assert engine.adapter.journal.kinds("call", "barrier", "effect")[:2] == [
        "e: effect release(kv_cache)",
        "e: barrier -> True",
    ]
    assert not engine.record.uncertain.needs_barrier


async def test_a_cancelled_pause_recovers() -> None:
    engine = await serving()
    engine.adapter.script("pause", HANG_LATE)
    await cancelled_in(engine, asyncio.create_task(engine.pause()), "pause")
    assert engine.state is State.FAILED
    assert (await engine.recover()).state is State.DRAINED
    await serve_again(engine)


async def test_nobody_can_declare_what_an_effect_that_may_still_run_will_leave() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("release", HANG_LATE)
    await cancelled_in(engine, asyncio.create_task(engine.release(weights=V1)), "release")
    with pytest.raises(InvalidTransition, match=r"may still run\. Next: `fleet\.recover\(\)`"):
        engine.override_state(State.DRAINED, by="operator", reason="looked at it, and it had not begun")
    assert engine.state is State.FAILED
    assert (await engine.recover()).state is State.WEIGHTS_RESTORED, "the KV cache went at the barrier"
    assert engine.facts.mapped == {"weights": True, "kv_cache": False}


async def test_an_effect_that_cannot_be_cancelled_is_waited_for() -> None:
    engine = await engine_in(State.DRAINED, caps={"cancellable": False})
    engine.adapter.script("release", HANG)
    verb = asyncio.create_task(engine.release(weights=V1, deadline_s=0.3))
    await cancelled_in(engine, verb, "release")
    assert engine.adapter.journal.kinds("reply") == ["e: reply release(kv_cache) -> lost"]


async def test_a_cancellation_while_asking_leaves_the_state_as_it_was() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("prove_idle", HANG)
    before = engine.facts
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await engine.release(weights=V1)
    assert (engine.state, engine.facts, engine.busy) == (State.DRAINED, before, None)
    assert sent(engine) == []
    await engine.release(weights=V1)


async def test_a_cancelled_drain_has_sent_nothing_and_is_paused() -> None:
    engine = await engine_in(State.PAUSED)
    facts = engine.facts
    engine.adapter.script("prove_idle", HANG)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await engine.drain()
    assert (engine.state, engine.facts, engine.busy) == (State.PAUSED, facts, None)
    assert sent(engine) == []
    await engine.drain()


async def test_a_cancelled_proof_of_a_command_that_sent_something_is_failed_and_recovers() -> None:
    engine = await engine_in(State.SERVING)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            engine.adapter.script("pause", Act(then=lambda _: engine.adapter.script("observe", HANG)))
            await engine.pause()
    assert engine.state is State.FAILED
    assert (await engine.recover()).state is State.DRAINED


# one at a time, and what people say


async def test_a_second_caller_is_told_what_is_under_way() -> None:
    engine = await engine_in(State.PAUSED)
    engine.adapter.engine.stubborn = 20
    drain = asyncio.create_task(engine.drain())
    await asyncio.sleep(0)
    with pytest.raises(EngineBusy, match="drain is under way") as busy:
        await engine.resume()
    assert busy.value.busy_with == "drain"
    with pytest.raises(EngineBusy):
        await engine.recover()
    assert await engine.verify() is State.DRAINING, "a monitor that looks disturbs nobody"
    await drain
    assert engine.state is State.DRAINED


async def test_what_an_operator_declares_is_measured_by_the_next_proof() -> None:
    engine = await engine_in(State.FAILED)
    record = engine.override_state(State.DRAINED, by="operator", reason="looked at nvidia-smi")
    assert engine.state is State.DRAINED
    assert record.reason == "asserted by operator: looked at nvidia-smi"
    assert engine.facts.grades["mapped"] is Grade.ASSERTED
    engine.adapter.engine.apply("pause", {"mode": "abort"})
    await engine.release(weights=V1)
    assert engine.facts.grades["mapped"] is Grade.MEASURED


async def test_a_declaration_that_is_wrong_is_found_out() -> None:
    engine = await engine_in(State.RELEASED)
    engine._session.go("contradicted", reason="a test")
    engine.override_state(State.DRAINED, by="operator", reason="a guess")
    engine.adapter.journal.clear()
    with pytest.raises(OperationFailed, match=r"512 MiB are resident, and its mapped tags hold .* settled to released"):
        await engine.release(weights=V1, deadline_s=0.3)
    assert sent(engine) == [], "a release of released memory would kill it"
    assert not engine.memory_is_free
    await serve_again(engine)


async def test_declare_needs_failed_a_name_and_a_reason() -> None:
    engine = await engine_in(State.DRAINED)
    with pytest.raises(InvalidTransition):
        engine.override_state(State.RELEASED, by="operator", reason="why not")
    engine._session.go("contradicted", reason="a test")
    with pytest.raises(ValueError, match="by="):
        engine.override_state(State.RELEASED, by=" ", reason="why not")
    with pytest.raises(InvalidTransition):
        engine.override_state(State.GONE, by="operator", reason="why not")
    assert engine.state is State.FAILED
