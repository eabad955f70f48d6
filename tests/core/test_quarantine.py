"""Quarantine: a move goes on without an engine that failed, where its process is gone or it is on devices of its own.

Of three engines `a` fails. It is killed, or it lives on a device of its own, or on one that `b` is on.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from rig import V1, V2, believing, new_engine, states

from lifecycle import (
    BaseObserver,
    Engine,
    Fleet,
    FleetError,
    FromDisk,
    Group,
    GuardRefused,
    Pushed,
    Refuted,
    State,
    Unmeasurable,
)
from lifecycle.core.policy import OnFailure
from lifecycle.fleet.failure_policy import FAILURE_POLICY, Failed, Phase, Step
from lifecycle.testing import DIE, LOST_AFTER, QUICK, REJECTED, Act, Journal, ScriptedRouter

ABC = ("a", "b", "c")
OWN = ("gpu-9",)
SHARED = ("gpu-0",)
HERE = {"b": "released", "c": "released"}
SERVE = {"b": "serving", "c": "serving"}


class Heard(BaseObserver):
    """Keeps what it hears of engines in quarantine."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def quarantined(self, engine: str, error: Exception, reason: str) -> None:
        self.heard.append((engine, type(error).__name__))


async def fleet_with(
    devices: tuple[str, ...] = SHARED,
    *,
    router: bool = True,
    on_failure: OnFailure = "quarantine",
    groups: dict[str, Group] | None = None,
    of: dict[str, str] | None = None,
    heard: Heard | None = None,
) -> Fleet:
    """A connected fleet of a, b and c; `a` is on these devices, the others on gpu-0. `of`: their groups."""
    journal, policy = Journal(), replace(QUICK, on_failure=on_failure)
    engines = [
        new_engine(
            name,
            journal=journal,
            has_router=router,
            policy=policy,
            devices=devices if name == "a" else SHARED,
            group=(of or {}).get(name, "default"),
        )
        for name in ABC
    ]
    for engine in engines if heard else ():
        engine._session.observers = type(engine._session.observers)([heard])
    fleet = Fleet(engines, groups=groups, policy=policy, router=ScriptedRouter(journal) if router else None)
    return await fleet.__aenter__()


Prepare = Callable[[Fleet], Awaitable[None]]


async def paused_stale(fleet: Fleet, mode: Any = "freeze") -> None:
    await fleet.pause(mode)
    for engine in fleet:
        believing(engine, cache_fresh=None)


async def serving(fleet: Fleet) -> None:
    pass


async def released(fleet: Fleet) -> None:
    await fleet.offload(weights=V1)


#: What precedes each phase, the call of it that ends the process of `a`, and how `a` fails in it and lives.
PHASES: dict[Step, tuple[Prepare, str, Callable[[Engine], None]]] = {
    ("offload", Phase.PAUSE): (serving, "pause", lambda a: a.adapter.script("pause", REJECTED)),
    ("offload", Phase.DRAIN): (serving, "prove_idle", lambda a: setattr(a.adapter.engine, "stubborn", -1)),
    ("offload", Phase.RELEASE): (serving, "release", lambda a: setattr(a.adapter.engine, "frees", False)),
    ("onload", Phase.PAUSE): (paused_stale, "pause", lambda a: a.adapter.script("pause", REJECTED)),
    ("onload", Phase.DRAIN): (
        lambda fleet: paused_stale(fleet, "abort"),
        "prove_idle",
        lambda a: setattr(a.adapter.engine, "stubborn", -1),
    ),
    ("onload", Phase.RESTORE_WEIGHTS): (released, "restore", lambda a: a.adapter.script("restore", LOST_AFTER)),
    ("onload", Phase.UPDATE_WEIGHTS): (released, "load", lambda a: a.adapter.script("load", REJECTED)),
    ("onload", Phase.RESTORE_KV): (released, "flush", lambda a: a.adapter.script("flush", REJECTED)),
    ("onload", Phase.RESUME): (released, "resume", lambda a: a.adapter.always("answers", Refuted(reason="no token"))),
}


async def moved(fleet: Fleet, step: Step) -> list[str]:
    """The engines of which the move returned a result."""
    move = fleet.offload(weights=V1, deadline_s=0.3) if step[0] == "offload" else fleet.onload(deadline_s=0.3)
    return [transition.engine for transition in await move]


def where(fleet: Fleet) -> dict[str, str]:
    return {name: state for name, state in states(fleet).items() if name != "a"}


def ends(step: Step) -> dict[str, str]:
    return HERE if step[0] == "offload" else SERVE


def test_every_cell_in_which_the_policy_goes_on_is_tested() -> None:
    assert {step for step, row in FAILURE_POLICY["quarantine"].items() if row.failed is Failed.QUARANTINE} == set(PHASES)


@pytest.mark.parametrize("router", [True, False], ids=["router", "no router"])
@pytest.mark.parametrize("step", PHASES, ids="-".join)
async def test_the_others_go_on_without_one_that_was_killed(
    step: Step, router: bool, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()
    fleet = await fleet_with(router=router, heard=heard)
    prepare, call, _ = PHASES[step]
    await prepare(fleet)
    fleet["a"].adapter.script(call, DIE)
    with caplog.at_level(logging.WARNING, "lifecycle"):
        assert await moved(fleet, step) == ["b", "c"]
    assert where(fleet) == ends(step)
    assert fleet["a"].state is State.GONE
    assert list(fleet.quarantined) == ["a"]
    assert "its process is gone" in fleet.quarantined["a"].reason
    assert fleet.quarantined["a"].figures["since_s"] > 1.7e9
    assert [name for name, _ in heard.heard] == ["a"]
    assert f"a is in quarantine, and the {step[0]} goes on without it" in caplog.text
    if router:
        assert "a" in fleet.router.closed
        assert ("b" in fleet.router.closed) == (step[0] == "offload")


@pytest.mark.parametrize("step", PHASES, ids="-".join)
async def test_the_others_go_on_without_one_that_lives_on_a_device_of_its_own(step: Step) -> None:
    fleet = await fleet_with(OWN)
    prepare, _, fail = PHASES[step]
    await prepare(fleet)
    fail(fleet["a"])
    assert await moved(fleet, step) == ["b", "c"]
    assert where(fleet) == ends(step)
    assert fleet["a"].state is not State.GONE
    assert "on gpu-9" in fleet.quarantined["a"].reason
    assert "a" in fleet.router.closed


@pytest.mark.parametrize("step", PHASES, ids="-".join)
async def test_one_that_lives_on_a_device_of_the_others_is_handled_as_under_restore(step: Step) -> None:
    fleet, other = await fleet_with(), await fleet_with(on_failure="restore")
    prepare, _, fail = PHASES[step]
    for each in (fleet, other):
        await prepare(each)
        fail(each["a"])
    with pytest.raises(FleetError) as failed:
        await moved(fleet, step)
    with pytest.raises(FleetError):
        await moved(other, step)
    assert "not put in quarantine: it lives, and it is on gpu-0, as b is" in str(failed.value)
    assert states(fleet) == states(other)
    assert fleet.router.closed == other.router.closed
    assert fleet.quarantined == {}


# where it may not be left behind


async def test_an_engine_whose_devices_are_not_known_is_not_left_behind() -> None:
    fleet = await fleet_with(OWN)
    fleet["a"].adapter.script("pause", REJECTED)
    fleet["a"].adapter.probe.always = Unmeasurable(reason="the driver is away")
    with pytest.raises(FleetError, match="it lives, and which devices it is on is not known"):
        await fleet.offload(weights=V1, deadline_s=0.3)
    assert fleet.quarantined == {}
    assert where(fleet) == SERVE


async def test_nobody_is_left_behind_where_the_devices_of_the_others_are_not_known() -> None:
    fleet = await fleet_with(OWN)
    fleet["a"].adapter.script("pause", REJECTED)
    fleet["c"]._session.commit(replace(fleet["c"].record, calibration=replace(fleet["c"].record.calibration,
        reading_all_mapped=None)))  # fmt: skip
    fleet["c"].adapter.probe.always = Unmeasurable(reason="the driver is away")
    with pytest.raises(FleetError, match="it lives, and which devices c is on is not known"):
        await fleet.offload(weights=V1, deadline_s=0.3)
    assert fleet.quarantined == {}


async def test_a_device_that_it_was_on_before_counts_as_one_that_it_is_on() -> None:
    fleet = await fleet_with(("gpu-0", "gpu-9"))
    fleet["a"].adapter.script("pause", REJECTED)
    assert fleet["a"].record.calibration.reading_all_mapped is not None
    fleet["a"].adapter.engine.devices = ("gpu-9", "gpu-9")
    with pytest.raises(FleetError, match="it lives, and it is on gpu-0, as b is"):
        await fleet.offload(weights=V1, deadline_s=0.3)


async def test_an_engine_that_lives_is_not_left_behind_where_no_router_keeps_requests_from_it() -> None:
    fleet = await fleet_with(OWN, router=False)
    fleet["a"].adapter.script("pause", REJECTED)
    with pytest.raises(FleetError, match="it lives, and no router keeps requests from it"):
        await fleet.offload(weights=V1, deadline_s=0.3)
    assert fleet.quarantined == {}


@pytest.mark.parametrize("killed", [True, False])
async def test_an_engine_is_not_left_behind_where_its_router_cannot_be_closed(killed: bool) -> None:
    fleet = await fleet_with(OWN)
    await fleet.offload(weights=V1)
    fleet["a"].adapter.script("restore", DIE if killed else LOST_AFTER)
    fleet.router.close_fails = OSError("the router is away")
    with pytest.raises(FleetError, match="its router could not be closed: the router is away"):
        await fleet.onload(deadline_s=0.3)
    assert fleet.quarantined == {}
    assert where(fleet) == SERVE
    assert fleet.router.closed == {"a"}


async def test_an_engine_is_not_left_behind_where_its_router_says_that_it_still_sends() -> None:
    fleet = await fleet_with(OWN)
    await fleet.offload(weights=V1)
    fleet["a"].adapter.script("restore", LOST_AFTER)
    fleet.router.unconfirmed = frozenset({"a"})
    with pytest.raises(FleetError, match="says that it still sends"):
        await fleet.onload(deadline_s=0.3)
    assert fleet.quarantined == {}


async def test_nobody_is_left_behind_where_no_other_is_left() -> None:
    fleet = await fleet_with()
    for engine in fleet:
        engine.adapter.script("pause", DIE)
    with pytest.raises(FleetError, match="no other engine is left in the move"):
        await fleet.offload(weights=V1, deadline_s=0.3)
    assert fleet.quarantined == {}


async def test_an_offload_goes_on_without_all_that_failed_or_without_none() -> None:
    fleet = await fleet_with()
    fleet["a"].adapter.script("pause", DIE)
    fleet["b"].adapter.script("pause", REJECTED)
    with pytest.raises(FleetError) as failed:
        await fleet.offload(weights=V1, deadline_s=0.3)
    assert "b is on" not in str(failed.value)
    assert "it is on gpu-0, as c is" in str(failed.value)
    assert states(fleet) == {"a": "gone", "b": "serving", "c": "serving"}
    assert fleet.quarantined == {}


async def test_an_onload_fails_for_those_that_may_not_be_left_behind_alone() -> None:
    fleet = await fleet_with()
    await fleet.offload(weights=V1)
    fleet["a"].adapter.script("restore", DIE)
    fleet["b"].adapter.script("restore", REJECTED)
    with pytest.raises(FleetError) as failed:
        await fleet.onload(deadline_s=0.3)
    assert [error.engine for error in failed.value.exceptions] == ["b"]
    assert list(fleet.quarantined) == ["a"]
    assert "a is in quarantine since" in failed.value.__notes__[0]
    assert states(fleet) == {"a": "gone", "b": "released", "c": "serving"}


async def test_where_a_later_phase_fails_all_but_the_one_in_quarantine_serve_again() -> None:
    fleet = await fleet_with()
    fleet["a"].adapter.script("pause", DIE)
    fleet["b"].adapter.engine.frees = False
    with pytest.raises(FleetError) as failed:
        await fleet.offload(weights=V2, deadline_s=0.3)
    assert [error.engine for error in failed.value.exceptions] == ["b"]
    assert states(fleet) == {"a": "gone", "b": "released", "c": "serving"}
    assert list(fleet.quarantined) == ["a"]
    assert [fleet[name].desired.version for name in ("a", "c")] == ["v2", "v2"]


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
    assert where(fleet) == SERVE
    assert fleet["a"].state is State.GONE
    assert fleet["a"].desired.version == "v1"


async def test_a_move_of_engines_in_quarantine_alone_is_refused() -> None:
    fleet = await fleet_with()
    fleet["a"].adapter.script("pause", DIE)
    await fleet.offload(weights=V1)
    with pytest.raises(FleetError, match=r"a: onload refused in state gone: quarantined: it is in quarantine since") as no:
        await fleet.onload(engines=["a"])
    assert isinstance(no.value.exceptions[0], GuardRefused)


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
    with pytest.raises(FleetError, match="it is in quarantine, and it lives, and it is on gpu-0, as b is; recover it"):
        await fleet.offload(weights=V1)
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
