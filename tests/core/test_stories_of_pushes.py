"""A push is one collective: all engines arrive, the trainer sends once, all go on; or all fail, and soon."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from rig import V1, engine_in, fleet_of, sent, states

from lifecycle import (
    Contents,
    Engine,
    EngineBusy,
    Fleet,
    FleetError,
    GuardRefused,
    InvalidTransition,
    NotProved,
    Pushed,
    State,
)
from lifecycle.testing import DIE, HANG, REJECTED, Journal


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
    with pytest.raises(ZeroDivisionError):
        async with fleet.updating_weights("v1"):
            raise ZeroDivisionError
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
    assert happened[-2:] == ["a: reply push_tensor(v1,w)", "a: barrier"]
    assert not fleet["a"].record.uncertain.needs_barrier
    assert states(fleet) == {"a": "drained", "b": "drained"}
