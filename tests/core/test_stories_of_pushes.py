"""A push is one collective: all engines arrive, the trainer sends once, all go on; or all fail, and soon."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import journals
import pytest
from rig import V1, engine_in, fleet_of, sent, states

from lifecycle import (
    Contents,
    DeadlineExceeded,
    Engine,
    EngineBusy,
    Fleet,
    FleetError,
    GuardRefused,
    InvalidTransition,
    NotProved,
    OperationFailed,
    Pushed,
    Rejected,
    State,
    Unreachable,
)
from lifecycle.rules import knowledge
from lifecycle.testing import (
    DIE,
    HANG,
    HANG_LATE,
    LATE,
    LOST,
    LOST_AFTER,
    REJECTED,
    REJECTED_AFTER,
    RESTART,
    Act,
    Journal,
)


async def push_to_all(engines: Sequence[Engine]) -> None:
    await asyncio.gather(*(engine.push("tensor", names=["w"]) for engine in engines))


async def drained(*names: str) -> tuple[Fleet, Journal]:
    fleet, journal = await fleet_of(*names)
    await fleet.pause()
    await fleet.drain()
    journal.clear()
    return fleet, journal


async def test_one_engine_takes_a_push() -> None:
    engine = await engine_in(State.WEIGHTS_RESTORED)
    await engine.update_weights(Pushed(push_to_all, "v1"))
    assert sent(engine) == ["begin_update", "push_tensor(v1,w)", "end_update", "flush"]
    assert engine.adapter.engine.contents == {"weights": Contents("loaded", "v1")}
    await engine.restore_kv()
    await engine.resume()
    assert engine.adapter.engine.violations == []


async def test_the_trainer_sends_once_and_when_all_have_begun() -> None:
    fleet, journal = await drained("a", "b", "c")
    calls: list[list[str]] = []

    async def push(engines: Sequence[Engine]) -> None:
        calls.append([engine.name for engine in engines])
        begun = [entry.engine for entry in journal if entry.kind == "reply" and entry.name == "begin_update"]
        assert sorted(begun) == ["a", "b", "c"]
        await push_to_all(engines)

    await fleet.update_weights(Pushed(push, "v1"))
    assert calls == [["a", "b", "c"]]
    replies = journal.kinds("call", "reply")
    last_push = max(index for index, line in enumerate(replies) if "reply push_tensor" in line)
    first_end = min(index for index, line in enumerate(replies) if "call end_update" in line)
    assert last_push < first_end
    assert states(fleet) == dict.fromkeys("abc", "drained")


async def test_a_push_that_pushes_nothing_is_not_believed() -> None:
    engine = await engine_in(State.WEIGHTS_RESTORED)

    async def nothing(engines: Sequence[Engine]) -> None:
        return None

    with pytest.raises(NotProved, match="reports version"):
        await engine.update_weights(Pushed(nothing, "v1"), deadline_s=0.3)
    assert engine.weights_refusal() is not None


async def test_the_trainers_failure_fails_all_and_comes_through() -> None:
    fleet, _ = await drained("a", "b")

    async def breaks(engines: Sequence[Engine]) -> None:
        raise RuntimeError("NCCL went away")

    with pytest.raises(FleetError, match="NCCL went away") as failed:
        await fleet.update_weights(Pushed(breaks, "v1"))
    assert len(failed.value.exceptions) == 2
    cause = failed.value.exceptions[0].__cause__
    assert cause is not None
    assert isinstance(cause.__cause__, RuntimeError)
    assert all(engine.weights_refusal() for engine in fleet)  # whatever begin_update left there
    await fleet.update_weights(V1)
    await fleet.resume()


@pytest.mark.parametrize(("call", "act"), [("begin_update", DIE), ("begin_update", REJECTED), ("push_tensor", DIE)])
async def test_one_engines_failure_fails_all(call: str, act: object) -> None:
    fleet, _ = await drained("a", "b", "c")
    fleet["b"].adapter.script(call, act)
    async with asyncio.timeout(2):
        with pytest.raises(FleetError, match="push failed for every engine") as failed:
            await fleet.update_weights(Pushed(push_to_all, "v1"))
    assert len(failed.value.exceptions) == 3
    assert failed.value.succeeded == ()
    assert all(engine.weights_refusal() for engine in fleet if engine.state is not State.GONE)


async def test_a_collective_that_one_engine_may_not_join_fails_for_all_at_once() -> None:
    """The others would otherwise wait for it until their deadline."""
    fleet, _ = await drained("a", "b")
    await fleet["b"].resume()
    async with asyncio.timeout(1):
        with pytest.raises(FleetError) as failed:
            await fleet.update_weights(Pushed(push_to_all, "v1"))
    assert {type(error) for error in failed.value.exceptions} >= {InvalidTransition}


async def test_a_collective_that_a_guard_refuses_fails_for_all_at_once() -> None:
    fleet, _ = await drained("a", "b")
    await fleet["b"].update_weights(Pushed(push_to_all, "v1"))
    async with asyncio.timeout(1):
        with pytest.raises(FleetError) as failed:
            await fleet.update_weights(Pushed(push_to_all, "v1"))
    assert {type(error) for error in failed.value.exceptions} >= {GuardRefused}


async def test_a_push_that_hangs_ends_with_the_deadline_for_all() -> None:
    fleet, _ = await drained("a", "b")

    async def hangs(engines: Sequence[Engine]) -> None:
        await asyncio.sleep(60)

    begun = asyncio.get_running_loop().time()
    with pytest.raises(FleetError, match="the push did not end"):
        await fleet.update_weights(Pushed(hangs, "v1"), deadline_s=0.3)
    assert asyncio.get_running_loop().time() - begun < 1
    assert len(asyncio.all_tasks()) == 1  # the trainer's push is not left running


async def test_updating_weights_hands_the_engines_to_the_trainer() -> None:
    fleet, _ = await drained("a", "b")
    async with fleet.updating_weights("v1") as engines:
        assert [engine.name for engine in engines] == ["a", "b"]
        await push_to_all(engines)
    assert all(engine.adapter.engine.label == "v1" for engine in fleet)
    await fleet.resume()


async def test_an_exception_inside_updating_weights_fails_all_and_comes_through() -> None:
    fleet, _ = await drained("a", "b")
    with journals.kept() as entries, pytest.raises(ZeroDivisionError):
        async with fleet.updating_weights("v1"):
            raise ZeroDivisionError
    assert "the push was given up: ZeroDivisionError" in str(list(entries))
    assert all(engine.weights_refusal() for engine in fleet)
    assert not any(engine.busy or engine.in_move for engine in fleet)


async def test_an_engine_that_fails_inside_updating_weights_is_told_at_the_end() -> None:
    fleet, _ = await drained("a", "b")
    fleet["b"].adapter.script("end_update", REJECTED)
    with pytest.raises(FleetError, match="end_update"):
        async with fleet.updating_weights("v1") as engines:
            await push_to_all(engines)
    assert fleet["a"].weights_refusal() is None


async def test_a_refused_updating_weights_does_not_enter_its_body() -> None:
    fleet, _ = await fleet_of("a")
    entered = False
    with pytest.raises(FleetError, match="allowed here: pause"):
        async with fleet.updating_weights("v1"):
            entered = True
    assert not entered


async def test_updating_no_engine_hands_over_none() -> None:
    fleet, _ = await fleet_of("a")
    async with fleet.updating_weights("v1", engines=[]) as engines:
        assert list(engines) == []


async def test_a_push_outside_an_update_is_refused() -> None:
    engine = await engine_in(State.DRAINED)
    with pytest.raises(InvalidTransition, match=r"inside updating_weights\(\)"):
        await engine.push("tensor")
    assert sent(engine) == []


async def test_a_cancelled_push_leaves_no_engine_waiting() -> None:
    fleet, _ = await drained("a", "b")

    async def hangs(engines: Sequence[Engine]) -> None:
        await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await fleet.update_weights(Pushed(hangs, "v1"))
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1
    assert states(fleet) == {"a": "failed", "b": "failed"}
    for engine in fleet:
        assert (await engine.recover()).state is State.DRAINED


async def test_a_second_update_meanwhile_is_busy() -> None:
    fleet, _ = await drained("a")
    async with fleet.updating_weights("v1") as engines:
        with pytest.raises(EngineBusy):
            await fleet.resume()
        await push_to_all(engines)


async def test_a_call_of_a_push_that_hangs_fails_the_collective_within_its_deadline() -> None:
    fleet, _ = await drained("a", "b")
    fleet["a"].adapter.script("push_tensor", HANG)
    async with asyncio.timeout(2):
        with pytest.raises(FleetError):
            await fleet.update_weights(Pushed(push_to_all, "v1"), deadline_s=0.3)


@pytest.mark.parametrize("cancellable", [True, False])
async def test_the_barrier_comes_after_the_last_call_of_a_push_that_failed_elsewhere(cancellable: bool) -> None:
    caps = {"cancellable": cancellable}
    fleet, journal = await fleet_of("a", "b", caps={"a": caps, "b": caps})
    await fleet.pause()
    await fleet.drain()
    fleet["a"].adapter.script("push_tensor", HANG)
    fleet["b"].adapter.script("push_tensor", REJECTED)
    with pytest.raises(FleetError):
        await fleet.update_weights(Pushed(push_to_all, "v1"), deadline_s=0.3)  # gather() leaves the call to a running
    happened = [line.partition(" -> ")[0] for line in journal.kinds("reply", "barrier") if line.startswith("a: ")]
    assert happened[-3:] == ["a: reply push_tensor(v1,w)", "a: barrier", "a: reply close_update"]
    assert not fleet["a"].record.uncertain.needs_barrier
    assert states(fleet) == {"a": "drained", "b": "drained"}


# a push that fails is ended on the engine, so that the next one is taken


async def a_trainer_that_raises(engines: Sequence[Engine]) -> None:
    raise RuntimeError("NCCL went away")


async def a_trainer_that_hangs(engines: Sequence[Engine]) -> None:
    await asyncio.sleep(60)


async def cancelled_in_its_push(engine: Engine) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await engine.update_weights(Pushed(a_trainer_that_hangs, "v1"))


async def past_its_deadline(engine: Engine) -> None:
    with pytest.raises(DeadlineExceeded):
        await engine.update_weights(Pushed(a_trainer_that_hangs, "v1"), deadline_s=0.3)


async def given_up_by_its_trainer(engine: Engine) -> None:
    with pytest.raises(Unreachable, match="NCCL went away"):
        await engine.update_weights(Pushed(a_trainer_that_raises, "v1"))


@pytest.mark.parametrize("fails", [cancelled_in_its_push, past_its_deadline, given_up_by_its_trainer])
async def test_after_a_push_that_failed_the_next_one_is_taken(fails: Callable[[Engine], Awaitable[None]]) -> None:
    engine = await engine_in(State.DRAINED)
    await fails(engine)
    assert sent(engine) == ["begin_update", "close_update"]
    assert not engine.adapter.engine.pushing
    assert not engine.record.uncertain.push_open
    assert engine.weights_refusal() is not None
    if engine.state is State.FAILED:  # the caller gave up, so nothing was asked
        await engine.recover()
    assert engine.state is State.DRAINED
    await engine.update_weights(Pushed(push_to_all, "v2"))
    await engine.resume()
    assert engine.adapter.engine.violations == []


@pytest.mark.parametrize("returns", [True, False])
async def test_a_push_that_is_given_up_is_ended_after_its_barrier_and_not_without(returns: bool) -> None:
    """What was sent for it may run still, and would begin it again."""
    engine = await engine_in(State.DRAINED)
    engine.adapter.always("barrier", None if returns else LOST)
    await cancelled_in_its_push(engine)
    happened = [entry for entry in engine.adapter.journal if entry.kind in ("call", "barrier")]
    kinds = [entry.name or entry.kind for entry in happened]
    assert kinds == (["begin_update", "barrier", "close_update"] if returns else ["begin_update", "barrier"])
    assert engine.record.uncertain.push_open is not returns


@pytest.mark.virtual_time
@pytest.mark.parametrize("act", [LOST, LOST_AFTER, LATE, REJECTED_AFTER, HANG, HANG_LATE], ids=str)
@pytest.mark.parametrize("call", ["begin_update", "end_update", "close_update"])
async def test_whatever_becomes_of_a_call_of_it_the_engine_takes_a_push_again(call: str, act: Act) -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script(call, act)
    trainer = a_trainer_that_raises if call == "close_update" else push_to_all
    with suppress(OperationFailed):  # an end that took effect and was not acknowledged is no failure of the push
        await engine.update_weights(Pushed(trainer, "v1"), deadline_s=0.3)
    if engine.state is State.FAILED:
        assert engine.record.uncertain.push_open
        await engine.recover()
    assert engine.state is State.DRAINED
    assert engine.weights_refusal() is not None
    await engine.update_weights(Pushed(push_to_all, "v2"))
    await engine.resume()
    assert engine.adapter.engine.violations == engine.adapter.engine.deaths == []


async def test_an_end_that_nobody_answered_needs_a_barrier() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("close_update", LOST)
    with pytest.raises(Unreachable):
        await engine.update_weights(Pushed(a_trainer_that_raises, "v1"))
    assert engine.state is State.FAILED
    assert engine.record.uncertain.needs_barrier
    assert engine.record.uncertain.push_open
    engine.adapter.journal.clear()
    assert (await engine.recover()).state is State.DRAINED
    assert engine.adapter.journal.kinds("call", "barrier") == ["e: barrier -> True", "e: call close_update"]


async def test_a_push_that_somebody_else_left_open_is_ended_and_the_error_says_so() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.engine.apply("begin_update", {})
    with pytest.raises(Rejected, match="end it first"):
        await engine.update_weights(Pushed(push_to_all, "v1"))
    assert engine.state is State.DRAINED
    await engine.update_weights(Pushed(push_to_all, "v1"))


async def test_a_push_left_open_by_a_process_that_was_killed_is_ended_before_the_next_update() -> None:
    engine = await engine_in(State.DRAINED)
    record = engine.record
    desired = replace(record.desired, source=Pushed(None, "v1"), version="v1")
    killed = knowledge.interrupted(replace(record, state=State.UPDATING_IN_PLACE, desired=desired))
    assert killed.uncertain == replace(record.uncertain, needs_barrier=True, push_open=True)
    pushed = replace(record, uncertain=replace(record.uncertain, push_open=True))
    engine._session.commit(pushed)
    engine.adapter.engine.apply("begin_update", {})
    await engine.update_weights(Pushed(push_to_all, "v1"))
    assert sent(engine)[:2] == ["close_update", "begin_update"]


async def test_of_another_process_no_push_is_open() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("push_tensor", RESTART)
    with pytest.raises(OperationFailed):
        await engine.update_weights(Pushed(push_to_all, "v1"))
    assert not engine.record.uncertain.push_open
    assert "close_update" not in sent(engine)


async def test_no_push_is_ended_on_an_engine_that_admits_requests() -> None:
    """The end waits for the requests that run, and new ones wait behind it."""
    engine = await engine_in(State.DRAINED)
    engine.adapter.always("close_update", LOST)
    with pytest.raises(Unreachable):
        await engine.update_weights(Pushed(a_trainer_that_raises, "v1"))
    engine.adapter.as_modelled()
    engine.adapter.engine.admission = "open"
    engine.adapter.journal.clear()
    assert (await engine.recover()).state is State.PAUSED
    assert sent(engine) == ["pause(abort)"]
    await engine.drain()
    await engine.update_weights(Pushed(push_to_all, "v1"))
    assert sent(engine)[:3] == ["pause(abort)", "close_update", "begin_update"]
