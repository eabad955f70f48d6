"""`ensure`: an engine is somewhere by a deadline, on evidence, and is sent nothing where it is there already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from rig import V1, V2, engine_in, fleet_of, new_engine, states

from lifecycle import (
    ConfigurationError,
    DeadlineExceeded,
    Engine,
    EngineBusy,
    Fleet,
    FleetError,
    Group,
    GuardRefused,
    InvalidTransition,
    NotProved,
    Pushed,
    State,
)
from lifecycle.core.errors import RouterError
from lifecycle.core.states import RING
from lifecycle.rules.ensured import REACHED_FROM
from lifecycle.testing import HANG, LIE, QUICK


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come to hold")


EVERY_RING_STATE = pytest.mark.parametrize("state", RING, ids=str)
#: States in which an engine keeps the weights that it has.
TAKE_NONE = (State.PAUSED, State.DRAINED)
#: Nothing that was seen before serves.
NO_AGE = replace(QUICK, evidence_max_age_s=0.0)


@EVERY_RING_STATE
async def test_one_that_is_there_is_sent_nothing(state: State) -> None:
    engine = await engine_in(state, policy=NO_AGE)
    assert await engine.ensure(state, deadline_s=5.0) == []
    assert engine.adapter.journal.calls() == []
    assert len(engine.adapter.journal) > 0, "it was looked at"


@EVERY_RING_STATE
async def test_what_was_proved_just_now_is_not_asked_again(state: State) -> None:
    engine = await engine_in(state, policy=replace(QUICK, evidence_max_age_s=60.0))
    assert await engine.ensure(str(state), deadline_s=5.0) == []
    assert len(engine.adapter.journal) == 0


async def test_a_look_serves_for_as_long_as_the_policy_says() -> None:
    engine = await engine_in(State.RELEASED, policy=replace(QUICK, evidence_max_age_s=60.0))
    engine._session.confirmed_at_s -= 61.0
    await engine.ensure(State.RELEASED, deadline_s=5.0)
    looked = len(engine.adapter.journal)
    assert looked > 0
    await engine.ensure(State.RELEASED, deadline_s=5.0)
    assert len(engine.adapter.journal) == looked
    engine._session.confirmed_at_s -= 61.0
    await engine.ensure(State.RELEASED, deadline_s=5.0)
    assert len(engine.adapter.journal) > looked


async def test_what_a_person_asserted_is_looked_at() -> None:
    engine = await engine_in(State.FAILED, policy=replace(QUICK, evidence_max_age_s=60.0))
    engine.override_state(State.RELEASED, by="a test", reason="a guess")
    done = await engine.ensure(State.RELEASED, weights=V1, deadline_s=5.0)
    assert done[-1].command == "release"
    assert engine.memory_is_free


@pytest.mark.parametrize(("source", "to"), [(s, t) for t in REACHED_FROM for s in RING], ids=str)
async def test_it_is_brought_there_where_that_asks_nothing_of_anybody(source: State, to: State) -> None:
    engine = await engine_in(source, policy=NO_AGE)
    named = V1 if (source is not State.SERVING or to is not State.SERVING) and to not in TAKE_NONE else None
    if source in REACHED_FROM[to]:
        done = await engine.ensure(to, weights=named, deadline_s=5.0)
        assert engine.state is to
        assert [each.dest for each in done[-1:]] == ([] if source is to else [to])
        assert engine.adapter.engine.violations == []
    else:
        with pytest.raises(
            InvalidTransition, match=rf"ensure\({to}\) refused in state {source}.*{REACHED_FROM[to][0]}"
        ):
            await engine.ensure(to, weights=named, deadline_s=5.0)
        assert engine.state is source
        assert engine.adapter.journal.calls() == []


@pytest.mark.parametrize("wrong", ["failed", "gone", "detached", "pausing", "asleep", State.GONE])
async def test_a_state_that_nobody_can_bring_about_is_refused(wrong: str) -> None:
    fleet, journal = await fleet_of("a")
    for ensuring in (fleet.ensure, fleet["a"].ensure):
        with pytest.raises(ConfigurationError, match=f"'{wrong!s}' is .*one of serving, paused, drained, released"):
            await ensuring(wrong, deadline_s=5.0)
        with pytest.raises(ConfigurationError, match="deadline_s must be a finite number > 0"):
            await ensuring("paused", deadline_s=0.0)
        with pytest.raises(ConfigurationError, match="is no source of weights"):
            await ensuring("paused", weights="v1", deadline_s=1.0)
    assert journal.calls() == []


async def test_released_is_ensured_only_where_memory_came_back() -> None:
    engine = await engine_in(State.DRAINED, policy=replace(NO_AGE, settle_s=0.05), caps={"evidence": {}})
    engine.adapter.script("release", LIE)
    with pytest.raises(NotProved, match="memory_returned"):
        await engine.release(weights=V1, deadline_s=0.2)
    assert engine.state is State.RELEASED
    with pytest.raises(GuardRefused, match="memory_returned is"):
        await engine.ensure(State.RELEASED, deadline_s=5.0)


async def test_released_in_part_is_not_released() -> None:
    engine = await engine_in(State.DRAINED, policy=NO_AGE)
    await engine.release(["kv_cache"])
    with pytest.raises(GuardRefused, match="weights are not among what was given back"):
        await engine.ensure(State.RELEASED, deadline_s=5.0)
    fleet = Fleet([engine], policy=NO_AGE)
    with pytest.raises(FleetError, match="weights are not among what was given back"):
        await fleet.ensure(State.RELEASED, deadline_s=5.0)


async def test_serving_is_ensured_with_the_weights_that_are_named() -> None:
    engine = await engine_in(State.RELEASED, policy=NO_AGE)
    await engine.ensure(State.SERVING, weights=V2, deadline_s=5.0)
    assert engine.weights_version == "v2"
    assert await engine.ensure(State.SERVING, weights=V2, deadline_s=5.0) == []
    with pytest.raises(GuardRefused, match=r"loaded\(v2\), and v1 is wanted; no command changes that there"):
        await engine.ensure(State.SERVING, weights=V1, deadline_s=5.0)
    assert engine.desired.version == "v2"


async def test_a_push_is_made_for_an_engine_alone() -> None:
    async def push(engines: Sequence[Engine]) -> None:
        for each in engines:
            await each.push("tensor")

    engine = await engine_in(State.RELEASED, policy=NO_AGE)
    await engine.ensure(State.SERVING, weights=Pushed(push, "v9"), deadline_s=5.0)
    assert engine.weights_version == "v9"


async def test_one_that_another_acted_on_is_found_out_and_brought_there() -> None:
    engine = await engine_in(State.SERVING, policy=NO_AGE)
    engine.adapter.engine.apply("pause", {"mode": "abort"})
    done = await engine.ensure(State.SERVING, weights=V1, deadline_s=5.0)
    assert [each.command for each in done] == ["update_weights", "resume"]


@pytest.mark.virtual_time
async def test_it_ends_by_its_deadline_and_not_later() -> None:
    engine = await new_engine(policy=replace(QUICK, evidence_max_age_s=0.0)).connect()
    engine.adapter.script("restore", HANG)
    await engine.ensure(State.RELEASED, weights=V1, deadline_s=5.0)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    with pytest.raises(DeadlineExceeded):
        await engine.ensure(State.SERVING, deadline_s=2.0)
    assert loop.time() - began_s < 2.5


# fleets


@EVERY_RING_STATE
async def test_a_fleet_is_brought_there_and_then_sent_nothing(state: State) -> None:
    fleet, journal = await fleet_of("a", "b", policy=NO_AGE, router=True)
    if state in (State.SERVING, State.WEIGHTS_RESTORED, State.KV_RESTORED):
        await fleet.ensure(State.RELEASED, weights=V1, deadline_s=5.0)
    named = None if state in TAKE_NONE else V1
    done = await fleet.ensure(state, weights=named, deadline_s=5.0)
    assert states(fleet) == {"a": str(state), "b": str(state)}
    assert [each.dest for each in done] == [state, state]
    journal.clear()
    assert await fleet.ensure(state, weights=named, deadline_s=5.0) == []
    assert journal.calls() == []


async def test_only_those_that_are_elsewhere_are_brought_there() -> None:
    fleet, journal = await fleet_of("a", "b", "c", policy=replace(QUICK, evidence_max_age_s=60.0))
    await fleet.offload(weights=V1, engines=["a"])
    journal.clear()
    done = await fleet.ensure("released", weights=V1, engines=["a", "b"], deadline_s=5.0)
    assert [each.engine for each in done] == ["b"]
    assert not [entry for entry in journal if entry.engine == "a"], "it was not asked either"
    assert states(fleet) == {"a": "released", "b": "released", "c": "serving"}
    done = await fleet.ensure("serving", deadline_s=5.0)
    assert [each.engine for each in done] == ["a", "b"]


async def test_nothing_is_sent_where_one_of_them_cannot_be_brought_there() -> None:
    fleet, journal = await fleet_of("a", "b")
    await fleet.offload(weights=V1, engines=["b"])
    journal.clear()
    with pytest.raises(
        FleetError, match=r"refused before anything was sent: b: ensure\(drained\) refused in state released"
    ):
        await fleet.ensure(State.DRAINED, deadline_s=5.0)
    assert journal.calls() == []
    fleet["a"]._session.go("contradicted", reason="a test")
    with pytest.raises(FleetError, match=r"a: ensure\(serving\) refused in state failed: no command is allowed here"):
        await fleet.ensure(State.SERVING, deadline_s=5.0)
    assert journal.calls() == []


async def test_one_that_serves_behind_a_closed_router_is_not_there() -> None:
    fleet, journal = await fleet_of("a", router=True)
    await fleet.offload(weights=V1)
    fleet.router.open_fails = RouterError("it is not there")
    with pytest.raises(FleetError, match="it is not there"):
        await fleet.onload()
    assert fleet["a"].state is State.SERVING
    with pytest.raises(GuardRefused, match="its router is not known to send to it; no command changes that there"):
        await fleet["a"].ensure(State.SERVING, deadline_s=5.0)
    fleet.router.open_fails = None
    await fleet.ensure(State.SERVING, deadline_s=5.0)
    assert fleet.router.closed == set()
    await fleet.pause()
    await fleet["a"].resume()
    assert fleet.router.closed == {"a"}, "an engine's own verbs leave the router alone"
    journal.clear()
    await fleet.ensure(State.SERVING, deadline_s=5.0)
    assert fleet.router.closed == set()
    assert journal.calls() == []


async def test_groups_drain_in_their_waves() -> None:
    groups = {"decode": Group(drain_after=("prefill",)), "prefill": Group()}
    fleet, journal = await fleet_of("decode/d", "prefill/p", groups=groups)
    await fleet.ensure(State.DRAINED, deadline_s=5.0)
    idle = [each.engine for each in journal if each.kind == "idle"]
    assert idle == sorted(idle, reverse=True)
    assert states(fleet) == {"d": "drained", "p": "drained"}


async def test_requests_that_were_frozen_are_paused_anew_before_they_drain() -> None:
    fleet, _ = await fleet_of("a")
    await fleet.pause("freeze")
    done = await fleet.ensure(State.DRAINED, mode="keep", deadline_s=5.0)
    assert [each.command for each in done] == ["drain"]
    assert fleet["a"].facts.paused_by == "keep"


async def test_a_move_that_is_under_way_is_waited_for() -> None:
    fleet, _ = await fleet_of("a", "b")
    fleet["a"].adapter.engine.stubborn = 20
    move = asyncio.create_task(fleet.offload(weights=V1))
    await until(lambda: fleet["a"].busy is not None)
    calls: list[Any] = [fleet.ensure(State.RELEASED, deadline_s=5.0), fleet["b"].ensure("released", deadline_s=5.0)]
    assert await asyncio.gather(*calls) == [[], []]
    assert move.done()
    await move


@pytest.mark.virtual_time
async def test_a_move_that_does_not_end_is_waited_for_until_the_deadline() -> None:
    fleet, _ = await fleet_of("a")
    fleet["a"].adapter.script("release", HANG)
    move = asyncio.create_task(fleet.offload(weights=V1))
    await until(lambda: fleet["a"].state is State.RELEASING)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    with pytest.raises(EngineBusy, match="is under way"):
        await fleet.ensure(State.SERVING, deadline_s=1.0)
    assert 0.9 < loop.time() - began_s < 1.5
    move.cancel()
    await asyncio.gather(move, return_exceptions=True)


def slow(engine: Engine, seconds: float) -> None:
    """Every call of the engine takes so long, and is not answered where it has less."""
    send = engine.adapter.send

    async def slowly(call: Any, *, deadline_s: float) -> Any:
        await asyncio.sleep(min(seconds, deadline_s))
        if deadline_s < seconds:
            engine.adapter.script(call.name, HANG)
        return await send(call, deadline_s=deadline_s)

    engine.adapter.send = slowly


@pytest.mark.virtual_time
async def test_the_phases_of_a_move_have_one_deadline_together() -> None:
    fleet, _ = await fleet_of("a", policy=replace(QUICK, on_failure="hold"))
    await fleet.offload(weights=V1)
    slow(fleet["a"], 0.8)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    with pytest.raises(FleetError):
        await fleet.ensure(State.SERVING, deadline_s=2.0)
    assert loop.time() - began_s < 2.6


@pytest.mark.virtual_time
async def test_the_waves_of_a_drain_have_one_deadline_together() -> None:
    groups = {"decode": Group(drain_after=("prefill",)), "prefill": Group()}
    fleet, _ = await fleet_of("decode/d", "prefill/p", groups=groups)
    idle, loop = fleet["p"].adapter.prove_idle, asyncio.get_running_loop()

    async def late(*args: Any, deadline_s: float) -> Any:
        await asyncio.sleep(0.7)
        return await idle(*args, deadline_s=deadline_s)

    fleet["p"].adapter.prove_idle = late
    fleet["d"].adapter.engine.stubborn = 10**6
    began_s = loop.time()
    with pytest.raises(FleetError, match="d: drain failed"):
        await fleet.ensure(State.DRAINED, deadline_s=1.0)
    assert loop.time() - began_s < 1.5


@pytest.mark.virtual_time
async def test_others_are_brought_back_though_nothing_is_left_of_the_deadline() -> None:
    fleet, _ = await fleet_of("a", "b")
    fleet["a"].adapter.script("pause", HANG)
    slow(fleet["b"], 0.2)
    with pytest.raises(FleetError, match="1 of 2 engines: a: pause failed"):
        await fleet.ensure(State.RELEASED, weights=V1, deadline_s=1.0)
    assert fleet["b"].state is State.SERVING


async def test_inside_a_window_what_the_trainer_has_is_there() -> None:
    fleet, journal = await fleet_of("a")
    async with fleet.offloaded(weights=V1):
        journal.clear()
        assert await fleet.ensure(State.RELEASED, deadline_s=5.0) == []
        assert journal.calls() == []
