"""No command returns later than its deadline, whatever hangs; a deadline that is no time is refused."""

from __future__ import annotations

import asyncio
import math

import pytest
from rig import V1, engine_in, fleet_of, states

from lifecycle import ConfigurationError, Fact, FleetError, NotProved, Observation, OperationFailed, Policy, State
from lifecycle.core.deadline import LOOK_S, Deadline
from lifecycle.testing import HANG, HANG_AFTER, HANG_LATE, LIE

pytestmark = pytest.mark.virtual_time

#: The last look at an engine is given LOOK_S; looking at the clock takes a little too.
SLACK_S = LOOK_S + 0.001

COMMANDS = {
    "pause": (State.SERVING, lambda engine: engine.pause(deadline_s=0.3), "pause"),
    "drain": (State.PAUSED, lambda engine: engine.drain(deadline_s=0.3), None),
    "release": (State.DRAINED, lambda engine: engine.release(weights=V1, deadline_s=0.3), "release"),
    "restore_weights": (State.RELEASED, lambda engine: engine.restore_weights(deadline_s=0.3), "restore"),
    "update_weights": (State.WEIGHTS_RESTORED, lambda engine: engine.update_weights(V1, deadline_s=0.3), "load"),
    "restore_kv": (State.WEIGHTS_RESTORED, lambda engine: engine.restore_kv(deadline_s=0.3), "restore"),
    "resume": (State.KV_RESTORED, lambda engine: engine.resume(deadline_s=0.3), "resume"),
}


async def timed(verb: object) -> float:
    begun = asyncio.get_running_loop().time()
    with pytest.raises(OperationFailed):
        await verb
    return asyncio.get_running_loop().time() - begun


async def ready(command: str):
    source, verb, call = COMMANDS[command]
    engine = await engine_in(source)
    if command == "restore_kv":
        await engine.update_weights(V1)
    return engine, verb, call


@pytest.mark.parametrize("act", [HANG, HANG_AFTER, HANG_LATE])
@pytest.mark.parametrize("command", [name for name, (_, _, call) in COMMANDS.items() if call])
async def test_a_call_that_hangs_ends_with_the_deadline(command: str, act: object) -> None:
    engine, verb, call = await ready(command)
    engine.adapter.always(call, act)
    assert await timed(verb(engine)) < 0.3 + SLACK_S
    assert engine.state.stable
    assert engine.busy is None


@pytest.mark.parametrize("command", list(COMMANDS))
async def test_an_engine_that_hangs_altogether_ends_with_the_deadline(command: str) -> None:
    engine, verb, _ = await ready(command)
    for name in (
        "pause",
        "release",
        "restore",
        "load",
        "flush",
        "resume",
        "observe",
        "prove_idle",
        "answers",
        "barrier",
    ):
        engine.adapter.always(name, HANG)
    assert await timed(verb(engine)) < 0.3 + SLACK_S
    assert engine.state is State.FAILED


async def test_an_engine_that_hangs_after_the_call_ends_with_the_deadline() -> None:
    engine, verb, _ = await ready("resume")
    for name in ("answers", "barrier", "pause"):
        engine.adapter.always(name, HANG)
    assert await timed(verb(engine)) < 0.3 + SLACK_S


@pytest.mark.parametrize("what", ["observe", "prove_idle", "barrier"])
async def test_recover_and_verify_end_with_their_deadline(what: str) -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.always(what, HANG)
    for look in (engine.verify, engine.recover):
        begun = asyncio.get_running_loop().time()
        await look(deadline_s=0.2)
        assert asyncio.get_running_loop().time() - begun < 0.2 + SLACK_S


async def test_a_fleets_phase_ends_with_its_deadline_and_the_others_come_back() -> None:
    fleet, _ = await fleet_of("a", "b", "c")
    fleet["b"].adapter.always("prove_idle", HANG)
    begun = asyncio.get_running_loop().time()
    with pytest.raises(FleetError, match="b: drain failed"):
        await fleet.offload(weights=V1, deadline_s=0.3)
    assert asyncio.get_running_loop().time() - begun < 0.3 + SLACK_S
    assert states(fleet) == dict.fromkeys("abc", "serving")


@pytest.mark.parametrize("deadline_s", [0, -1, math.nan, math.inf])
async def test_a_deadline_that_is_no_time_is_refused_before_anything_is_sent(deadline_s: float) -> None:
    engine = await engine_in(State.SERVING)
    with pytest.raises(ConfigurationError, match="the deadline of pause must be a finite number > 0"):
        await engine.pause(deadline_s=deadline_s)
    assert engine.state is State.SERVING
    assert engine.adapter.journal == []


async def test_the_last_look_has_time_for_an_answer() -> None:
    engine = await engine_in(State.DRAINED, policy=Policy(settle_s=1.0, poll_s=0.05))
    engine.adapter.script("release", LIE)
    observe = engine.adapter.observe

    async def slowly(want: frozenset[Fact], *, deadline_s: float) -> Observation:
        await asyncio.sleep(min(0.1, deadline_s))
        return await observe(want, deadline_s=1) if deadline_s >= 0.1 else Observation(detail="no answer")

    engine.adapter.observe = slowly
    with pytest.raises(NotProved, match="memory_returned"):
        await engine.release(weights=V1, deadline_s=2)


@pytest.mark.parametrize("verb", ["pause", "drain", "resume"])
async def test_no_router_is_asked_under_a_deadline_that_is_no_time(verb: str) -> None:
    fleet, journal = await fleet_of("a", "b", router=True)
    journal.clear()
    with pytest.raises(ConfigurationError, match="must be a finite number > 0"):
        await getattr(fleet, verb)(deadline_s=-1)
    assert journal == []


def test_a_deadline_keeps_back_at_most_a_quarter() -> None:
    assert Deadline(10, reserve_s=1).work_s == pytest.approx(9, abs=0.1)
    assert Deadline(2, reserve_s=5).work_s == pytest.approx(1.5, abs=0.1)
    assert Deadline(0).left_s == 0
