"""A resume may give up a drain under way, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from rig import V1, engine_in, fleet_of, sent, states

from lifecycle import Engine, EngineBusy, Fleet, FleetError, Preempted, State
from lifecycle.testing import HANG


async def under_way(verb: Any, engine: Engine, what: str) -> asyncio.Task[Any]:
    """The verb's task, once the engine is busy with it."""
    task = asyncio.ensure_future(verb)
    for turn in range(100):
        if engine.busy == what and turn > 20:  # some turns into it
            return task
        await asyncio.sleep(0)
    raise AssertionError(f"{what} was never under way")


@pytest.mark.parametrize("asks", ["observe", "prove_idle", None], ids=["in its guards", "in its proof", "between"])
async def test_a_resume_gives_up_a_drain_whose_caller_is_told(asks: str | None) -> None:
    engine = await engine_in(State.PAUSED)
    engine.adapter.engine.stubborn = -1
    if asks:
        engine.adapter.script(asks, HANG)
    drain = await under_way(engine.drain(), engine, "drain")
    transition = await engine.resume(preempt=True)
    assert transition.dest is engine.state is State.SERVING
    with pytest.raises(Preempted, match=r"given up for resume\(preempt=True\). It settled to paused") as told:
        await drain
    assert (told.value.by, told.value.settled) == ("resume(preempt=True)", State.PAUSED)
    assert sent(engine) == ["resume"]
    assert engine.busy is None


async def test_two_that_give_it_up_at_once_do_it_once() -> None:
    engine = await engine_in(State.PAUSED)
    engine.adapter.engine.stubborn = -1
    drain = await under_way(engine.drain(), engine, "drain")
    resumes = [asyncio.ensure_future(engine.resume(preempt=True)) for _ in range(2)]
    await asyncio.wait(resumes)
    assert sorted(type(each.exception()).__name__ for each in resumes) == ["EngineBusy", "NoneType"]
    assert isinstance((await asyncio.wait({drain}))[0].pop().exception(), Preempted)
    assert sent(engine) == ["resume"]


async def test_without_it_a_drain_under_way_is_busy() -> None:
    engine = await engine_in(State.PAUSED)
    engine.adapter.engine.stubborn = 20
    drain = await under_way(engine.drain(), engine, "drain")
    with pytest.raises(EngineBusy, match="drain is under way"):
        await engine.resume()
    assert (await drain).dest is State.DRAINED


async def test_a_drain_that_just_ended_is_not_given_up() -> None:
    engine = await engine_in(State.PAUSED)
    await engine.drain()
    assert (await engine.resume(preempt=True)).dest is State.SERVING


@pytest.mark.parametrize(
    ("state", "call", "verb"),
    [
        (State.DRAINED, "release", lambda engine: engine.release(weights=V1)),
        (State.SERVING, "pause", lambda engine: engine.pause()),
        (State.DRAINED, "load", lambda engine: engine.update_weights(V1)),
    ],
    ids=["release", "pause", "update_weights"],
)
async def test_no_other_command_is_given_up(state: State, call: str, verb: Any) -> None:
    engine = await engine_in(state)
    engine.adapter.script(call, HANG)
    task = asyncio.ensure_future(verb(engine))
    await asyncio.sleep(0.02)
    with pytest.raises(EngineBusy, match=f"{engine.busy} is under way"):
        await engine.resume(preempt=True)
    assert not task.done()
    task.cancel()
    await asyncio.wait({task})


async def test_a_caller_that_cancels_its_drain_meanwhile_gets_its_own_cancellation() -> None:
    engine = await engine_in(State.PAUSED)
    engine.adapter.engine.stubborn = -1
    drain = await under_way(engine.drain(), engine, "drain")
    resume = asyncio.ensure_future(engine.resume(preempt=True))
    drain.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drain
    assert (await resume).dest is State.SERVING


async def test_a_resume_of_a_fleet_gives_up_the_drains_of_its_engines() -> None:
    fleet, _ = await fleet_of("a", "b")
    await fleet.pause()
    fleet["b"].adapter.engine.stubborn = -1
    drain = await under_way(fleet.drain(), fleet["b"], "drain")
    await fleet.resume(preempt=True)
    assert states(fleet) == {"a": "serving", "b": "serving"}
    with pytest.raises(FleetError, match="b: drain failed") as told:
        await drain
    assert [type(error) for error in told.value.exceptions] == [Preempted]


async def test_the_drain_of_a_move_is_not_given_up() -> None:
    fleet, _ = await fleet_of("a")
    fleet["a"].adapter.engine.stubborn = -1
    move = await under_way(fleet.offload(weights=V1), fleet["a"], "drain")
    for resume in (fleet["a"].resume, Fleet.resume.__get__(fleet)):
        with pytest.raises(EngineBusy):
            await resume(preempt=True)
    assert fleet["a"].state is State.DRAINING
    move.cancel()
    await asyncio.wait({move})


async def test_one_that_will_not_end_is_waited_for_until_the_deadline() -> None:
    fleet, _ = await fleet_of("a", "b")
    await fleet.pause()
    for engine in fleet:
        engine.adapter.engine.stubborn = -1
    drain = await under_way(fleet.drain(deadline_s=0.6), fleet["b"], "drain")
    begun = asyncio.get_running_loop().time()
    with pytest.raises(EngineBusy, match="drain is under way"):  # the step ends with the drain of the other
        await fleet["b"].resume(preempt=True, deadline_s=0.2)
    assert asyncio.get_running_loop().time() - begun < 0.4
    with pytest.raises(FleetError):
        await drain
