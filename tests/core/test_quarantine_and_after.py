"""Quarantine: an engine that was lost before a move, and one that was left out: in later moves, and on its way home."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from quarantine_rig import HERE, OWN, PHASES, SERVE, SHARED, fleet_with, moved, where
from rig import V1, V2, sent

from lifecycle import Engine, Fleet, FleetError, FromDisk, Group, GuardRefused, Pushed, State
from lifecycle.fleet.failure_policy import Step
from lifecycle.store.sqlite import Store
from lifecycle.testing import DIE, REJECTED, Act

# before and after


async def test_one_that_was_gone_before_is_left_behind() -> None:
    fleet = await fleet_with()
    fleet["a"].adapter.engine.die("killed")
    fleet["a"]._session.go("contradicted", reason="a test")
    await fleet.recover()
    assert fleet["a"].state is State.GONE
    assert [each.engine for each in await fleet.offload(weights=V1)] == ["b", "c"]
    assert list(fleet.quarantined) == ["a"]


async def test_one_that_was_failed_before_and_shares_a_device_keeps_the_others_from_a_move() -> None:
    fleet = await fleet_with()
    fleet["a"]._session.go("contradicted", reason="a test")
    with pytest.raises(FleetError, match="it lives, and it is on gpu-0"):
        await fleet.offload(weights=V1)
    assert where(fleet) == SERVE
    assert not fleet.router.closed - {"a"}


async def test_one_that_was_gone_before_an_onload_is_left_behind() -> None:
    fleet = await fleet_with()
    await fleet.offload(weights=V1)
    fleet["a"].adapter.engine.die("killed")
    await fleet["a"].recover()
    assert [each.engine for each in await fleet.onload()] == ["b", "c"]
    assert list(fleet.quarantined) == ["a"]


async def test_one_that_is_gone_still_stays_in_quarantine() -> None:
    fleet = await fleet_with()
    fleet["a"].adapter.script("pause", DIE)
    await fleet.offload(weights=V1)
    assert (await fleet.recover())["a"].state is State.GONE
    assert list(fleet.quarantined) == ["a"]


@pytest.mark.parametrize("answers", [True, False])
async def test_no_device_is_handed_over_beside_one_that_was_started_again_though_it_does_not_answer(
    answers: bool,
) -> None:
    """Silence does not say that a process which was gone is gone still: it may hold memory already."""
    fleet = await fleet_with()
    fleet["a"].adapter.engine.die("killed")
    await fleet["a"].recover()
    fleet["a"].adapter.script("observe", Act(then=lambda model: model.restart(), answer="done" if answers else "lost"))
    with pytest.raises(FleetError, match="a: offload refused"):
        await fleet.offload(weights=V1)
    assert fleet["a"].state is not State.GONE
    assert {fleet[name].state for name in "bc"} == {State.SERVING}


async def test_one_that_was_gone_and_is_silent_is_not_recovered_as_gone() -> None:
    fleet = await fleet_with()
    fleet["a"].adapter.engine.die("killed")
    assert (await fleet["a"].recover()).state is State.GONE
    fleet["a"].adapter.engine.restart()
    fleet["a"].adapter.engine.reachable = False
    found = await fleet["a"].recover(deadline_s=0.2)
    assert (found.state, found.reason) == (State.FAILED, "it does not answer (no answer)")
    assert not fleet["a"].memory_is_free


async def test_a_window_that_is_given_up_on_its_way_out_brings_the_others_back() -> None:
    fleet = await fleet_with()
    fleet["a"].adapter.script("pause", DIE)
    fleet["b"].adapter.engine.stubborn = -1
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1), fleet.offloaded(weights=V1):
            raise AssertionError("entered")
    assert where(fleet) == SERVE
    assert fleet["a"].state is State.GONE


async def test_waves_behind_the_one_that_failed_are_drained() -> None:
    groups = {"prefill": Group(), "decode": Group(drain_after=("prefill",))}
    fleet = await fleet_with(groups=groups, of={"a": "prefill", "b": "prefill", "c": "decode"})
    fleet["a"].adapter.script("prove_idle", DIE)
    assert [each.engine for each in await fleet.offload(weights=V1, deadline_s=0.3)] == ["b", "c"]


async def test_later_moves_and_steps_leave_it_out_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    fleet = await fleet_with()
    fleet["a"].adapter.script("pause", DIE)
    async with fleet.offloaded(weights=V1):
        assert where(fleet) == HERE
    assert where(fleet) == SERVE
    caplog.clear()
    async with fleet.offloaded(weights=V2):
        assert where(fleet) == HERE
    assert "a is left out of offload: in quarantine since" in caplog.text
    await fleet.pause()
    await fleet.drain()
    await fleet.release(weights=V2)
    await fleet.restore_weights()
    await fleet.update_weights(V1)
    await fleet.restore_kv()
    await fleet.resume()
    steps = ("pause", "drain", "release", "restore_weights", "update_weights", "restore_kv", "resume")
    assert all(f"a is left out of {step}: in quarantine since" in caplog.text for step in steps)
    assert where(fleet) == SERVE
    assert fleet["a"].state is State.GONE
    assert fleet["a"].desired.version == "v1"


async def test_a_move_of_engines_in_quarantine_alone_is_refused() -> None:
    fleet = await fleet_with()
    fleet["a"].adapter.script("pause", DIE)
    await fleet.offload(weights=V1)
    with pytest.raises(
        FleetError, match=r"a: onload refused in state gone: quarantined: it is in quarantine since"
    ) as no:
        await fleet.onload(engines=["a"])
    assert isinstance(no.value.exceptions[0], GuardRefused)


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "alive"])
async def test_the_next_process_leaves_it_out_too(tmp_path: Path, killed: bool) -> None:
    fleet, path = await fleet_with(OWN), tmp_path / "engines"
    a = fleet["a"]
    a._session.store = Store(path)
    a.adapter.script("pause", DIE if killed else REJECTED)
    await fleet.offload(weights=V2)
    if killed:
        a.adapter.engine.restart()
    second = await Engine(a.adapter, name="a", policy=a.policy, probe=a.probe, store=Store(path)).connect()
    assert second.quarantined == a.quarantined
    assert second.desired.version == "v2"
    await second.recover()
    assert second.quarantined is None
    third = await Engine(a.adapter, name="a", policy=a.policy, probe=a.probe, store=Store(path)).connect()
    assert third.quarantined is None


async def test_what_leads_on_from_quarantine_is_recover() -> None:
    fleet = await fleet_with(OWN)
    fleet["a"].adapter.script("pause", REJECTED)
    await fleet.offload(weights=V1)
    assert str(fleet["a"].advice).startswith("Next: `fleet.recover(to='serving', engines=['a'])`")


async def test_what_a_step_loads_into_the_others_it_has_to_have_too() -> None:
    fleet = await fleet_with()
    fleet["a"].adapter.script("pause", DIE)
    await fleet.offload(weights=V1)
    await fleet.restore_weights()
    await fleet.update_weights(V2)
    assert fleet["a"].desired.version == "v2"


async def home(fleet: Fleet, *, restarted: bool) -> None:
    """`a` is home by one call, with the fleet's weights, before its router opens."""
    a = fleet["a"]
    if restarted:
        a.adapter.engine.restart()
    a.adapter.as_modelled()
    a.adapter.engine.stubborn, a.adapter.engine.frees = 0, True
    opened: list[str | None] = []
    open_router = fleet.router.open

    async def opens(engines: Any) -> None:
        if "a" in engines:
            opened.append(a.adapter.engine.label)
        await open_router(engines)

    fleet.router.open = opens
    found = await fleet.recover(to="serving")
    assert found["a"].state is State.SERVING, found
    assert fleet.quarantined == {}
    assert opened
    assert set(opened) == {"v2"}
    assert "a" not in fleet.router.closed
    assert a.adapter.engine.violations == []
    assert len(await fleet.offload(weights=V1)) == 3


@pytest.mark.parametrize("step", PHASES, ids="-".join)
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "alive"])
async def test_it_comes_home_by_recover_with_the_weights_of_its_fleet(step: Step, killed: bool) -> None:
    fleet = await fleet_with(SHARED if killed else OWN)
    prepare, call, fail = PHASES[step]
    await prepare(fleet)
    if killed:
        fleet["a"].adapter.script(call, DIE)
    else:
        fail(fleet["a"])
    await moved(fleet, step)
    assert list(fleet.quarantined) == ["a"]
    if step[0] == "offload":
        await fleet.onload()
    async with fleet.offloaded(weights=V2):
        pass
    await home(fleet, restarted=killed)


async def test_after_a_window_that_failed_it_comes_home_with_what_the_fleet_went_back_to() -> None:
    fleet = await fleet_with()
    fleet["a"].adapter.script("pause", DIE)
    async with fleet.offloaded(weights=V2):
        pass
    with pytest.raises(ArithmeticError):
        async with fleet.offloaded(weights=FromDisk("/models/step-3", "v3")):
            raise ArithmeticError("the step diverged")
    assert {engine.desired.version for engine in fleet} == {"v2"}
    await home(fleet, restarted=True)


async def test_where_the_others_do_not_come_back_it_is_to_serve_what_it_was_to_before() -> None:
    fleet = await fleet_with()
    fleet["a"].adapter.script("pause", DIE)
    async with fleet.offloaded(weights=V2):
        pass
    with pytest.raises(ArithmeticError):
        async with fleet.offloaded(weights=FromDisk("/models/step-3", "v3")):
            for name in "bc":
                fleet[name].adapter.always("restore", REJECTED)
            raise ArithmeticError("the step diverged")
    assert {engine.desired.version for engine in fleet} == {"v2"}


async def test_one_whose_fleet_was_pushed_to_waits_for_the_trainer() -> None:
    fleet = await fleet_with()
    fleet["a"].adapter.script("pause", DIE)

    async def push(engines: Any) -> None:
        for engine in engines:
            await engine.push("tensor", tensors=["all of it"])

    async with fleet.offloaded(weights=Pushed(push, "v3")):
        pass
    fleet["a"].adapter.engine.restart()
    found = await fleet.recover(to="serving")
    assert "only the trainer can make that" in found["a"].reason
    assert "a" in fleet.router.closed


async def test_one_that_was_started_again_on_a_device_of_the_others_keeps_them_from_an_offload() -> None:
    fleet = await fleet_with()
    fleet["a"].adapter.script("pause", DIE)
    async with fleet.offloaded(weights=V1):
        pass
    fleet["a"].adapter.engine.restart()
    fleet["b"].adapter.journal.clear()
    with pytest.raises(FleetError, match="it is in quarantine, and it lives, and it is on gpu-0, as b is; recover it"):
        await fleet.offload(weights=V1)
    assert sent(fleet["b"]) == []
    assert where(fleet) == SERVE
    assert list(fleet.quarantined) == ["a"]
    await fleet.recover(to="serving")
    assert len(await fleet.offload(weights=V1)) == 3


async def test_no_device_is_handed_over_where_it_was_started_again_meanwhile() -> None:
    fleet = await fleet_with()
    fleet["a"].adapter.script("pause", DIE)

    def again(_: Any) -> None:
        fleet["a"].adapter.engine.restart()

    fleet["c"].adapter.script("release", replace(Act(), then=again))
    with pytest.raises(FleetError, match="it is in quarantine, and it lives, and it is on gpu-0, as b is"):
        await fleet.offload(weights=V1)
    assert where(fleet) == SERVE
    assert "a" in fleet.router.closed
