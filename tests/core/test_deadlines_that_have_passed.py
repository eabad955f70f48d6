"""Once the deadline of several commands has passed none of them is sent any more, and the way back is not cut short."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from members_rig import newcomer, serving_v1
from rig import V1, engine_in, fleet_of, sent, states

from lifecycle import DeadlineExceeded, Engine, FleetError, Group, State
from lifecycle.core.deadline import LOOK_S, Deadline
from lifecycle.testing import QUICK, REJECTED

pytestmark = pytest.mark.virtual_time

#: Nothing that was seen before serves; engines stay where they failed.
LOOKS = replace(QUICK, evidence_max_age_s=0.0)
HOLD = replace(QUICK, on_failure="hold")


def lags(engine: Engine, method: str, seconds: float) -> None:
    """This method of the engine returns so long after it has ended."""
    before = getattr(engine, method)

    async def late(*args: Any, **how: Any) -> Any:
        done = await before(*args, **how)
        await asyncio.sleep(seconds)
        return done

    setattr(engine, method, late)


def slow(engine: Engine, **seconds: float) -> None:
    """Calls of these names take so long, and are given up where they have less."""
    send = engine.adapter.send

    async def slowly(call: Any, *, deadline_s: float) -> Any:
        async with asyncio.timeout(deadline_s):
            await asyncio.sleep(seconds.get(call.name, 0.0))
        return await send(call, deadline_s=deadline_s)

    engine.adapter.send = slowly


def test_a_deadline_has_passed_where_no_look_is_left_of_it() -> None:
    assert Deadline(LOOK_S * 0.9).has_passed
    assert not Deadline(10.0).has_passed


async def test_an_engine_is_sent_nothing_after_a_look_that_took_it_all() -> None:
    engine = await engine_in(State.SERVING, policy=LOOKS)
    lags(engine, "verify", 0.96)
    with pytest.raises(DeadlineExceeded, match=r"e: pause failed in state serving: the deadline of 1 s passed") as late:
        await engine.ensure(State.RELEASED, weights=V1, deadline_s=1.0)
    assert late.value.settled is engine.state is State.SERVING
    assert late.value.deadline_s == 1.0
    assert sent(engine) == []
    assert await engine.ensure(State.SERVING, deadline_s=1.0) == [], "one that is there is there in any case"


async def test_an_engine_is_sent_no_further_command() -> None:
    engine = await engine_in(State.RELEASED)
    lags(engine, "execute", 0.96)
    with pytest.raises(DeadlineExceeded, match=r"update_weights failed in state weights_restored.* and it was not"):
        await engine.ensure(State.SERVING, deadline_s=1.0)
    assert engine.state is State.WEIGHTS_RESTORED
    assert "load" not in " ".join(sent(engine))


@pytest.mark.parametrize("state", ["serving", "paused", "drained", "released"])
async def test_a_fleet_is_left_alone_after_a_look_that_took_it_all(state: str) -> None:
    fleet, journal = await fleet_of("a", "b", policy=LOOKS, router=True)
    if state == "serving":
        await fleet.offload(weights=V1)
    lags(fleet["a"], "verify", 0.96)
    journal.clear()
    with pytest.raises(FleetError, match=rf"2 of 2 engines: .*ensure\({state}\) failed.* and it was not"):
        await fleet.ensure(state, deadline_s=1.0)
    assert not [entry for entry in journal if entry.kind in ("call", "router")]


async def test_a_phase_of_a_move_is_given_to_nobody() -> None:
    fleet, journal = await fleet_of("a", "b", policy=HOLD)
    await fleet.offload(weights=V1)
    lags(fleet["a"], "execute", 0.96)
    journal.clear()
    with pytest.raises(FleetError, match=r"2 of 2 engines: .*update_weights failed in state weights_restored"):
        await fleet.ensure("serving", deadline_s=1.0)
    assert journal.calls() == ["a: restore(weights)", "b: restore(weights)"]
    assert states(fleet) == {"a": "weights_restored", "b": "weights_restored"}


async def test_a_move_that_is_not_begun_in_time_brings_all_back() -> None:
    fleet, _ = await fleet_of("a", "b", router=True)
    lags(fleet["a"], "execute", 0.96)
    with pytest.raises(FleetError, match=r"2 of 2 engines: .*drain failed in state paused"):
        await fleet.offload(weights=V1, deadline_s=Deadline(1.0))
    assert states(fleet) == {"a": "serving", "b": "serving"}
    assert fleet.router.closed == set()


async def test_a_wave_is_not_drained_after_a_wave_that_took_it_all() -> None:
    groups = {"decode": Group(drain_after=("prefill",)), "prefill": Group()}
    fleet, journal = await fleet_of("decode/d", "prefill/p", groups=groups)
    await fleet.pause()
    lags(fleet["p"], "execute", 0.96)
    journal.clear()
    with pytest.raises(FleetError, match="1 of 2 engines: d: drain failed in state paused") as failed:
        await fleet.ensure("drained", deadline_s=1.0)
    assert [each.engine for each in failed.value.succeeded] == ["p"]
    assert states(fleet) == {"d": "paused", "p": "drained"}
    assert not [entry for entry in journal if (entry.engine, entry.kind) == ("d", "idle")]


async def test_engines_at_their_own_pace_have_one_deadline_together() -> None:
    fleet, _ = await fleet_of("a", policy=HOLD)
    await fleet.offload(weights=V1)
    slow(fleet["a"], restore=0.6, load=0.6)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    with pytest.raises(FleetError):
        await fleet.onload(overlap=True, deadline_s=Deadline(1.0))
    assert loop.time() - began_s < 1.2


async def test_one_at_its_own_pace_is_given_no_further_command() -> None:
    fleet, journal = await fleet_of("a", policy=HOLD)
    await fleet.offload(weights=V1)
    lags(fleet["a"], "execute", 0.96)
    journal.clear()
    with pytest.raises(FleetError, match="a: update_weights failed in state weights_restored: the deadline of 1 s"):
        await fleet.onload(overlap=True, deadline_s=Deadline(1.0))
    assert "load" not in " ".join(journal.calls())


async def test_one_that_failed_late_is_released_again_in_the_time_of_its_policy() -> None:
    fleet, _ = await fleet_of("a")
    await fleet.offload(weights=V1)
    fleet["a"].adapter.script("load", REJECTED)
    slow(fleet["a"], restore=0.5, load=0.3, release=0.5)
    with pytest.raises(FleetError, match="It settled to released, where it was released again"):
        await fleet.onload(deadline_s=Deadline(1.0))
    assert fleet["a"].state is State.RELEASED


async def test_a_newcomer_that_took_it_all_to_start_is_sent_nothing() -> None:
    fleet, journal = await serving_v1("a")
    engine = newcomer(journal)
    lags(engine, "connect", 0.96)
    with pytest.raises(DeadlineExceeded, match="c: pause failed in state serving: the deadline of 1 s passed"):
        await fleet.adopt(engine, deadline_s=1.0)
    assert sent(engine) == []
    assert len(fleet) == 1
