"""Quarantine: a move goes on without an engine whose process is gone, or that lives on devices of its own."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from quarantine_rig import OWN, PHASES, SERVE, Heard, ends, fleet_with, moved, where
from rig import V1, V2, states
from structlog.testing import capture_logs

from lifecycle import FleetError, State, Unmeasurable
from lifecycle.fleet.failure_policy import FAILURE_POLICY, Failed, Step
from lifecycle.observers import EventLog
from lifecycle.testing import DIE, LOST_AFTER, REJECTED


def test_every_cell_in_which_the_policy_goes_on_is_tested() -> None:
    assert {step for step, row in FAILURE_POLICY["quarantine"].items() if row.failed is Failed.QUARANTINE} == set(
        PHASES
    )


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


async def test_the_log_has_an_event_of_it() -> None:
    with capture_logs() as events:
        fleet = await fleet_with(heard=EventLog())
        fleet["a"].adapter.script("pause", DIE)
        await fleet.offload(weights=V1)
    (event,) = [event for event in events if event["event"] == "quarantined"]
    assert (event["engine"], event["error"], event["log_level"]) == ("a", "Unreachable", "warning")
    assert event["reason"].startswith("its process is gone; a: pause failed in state serving")


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


@pytest.mark.parametrize(
    ("away", "said"), [(OSError("the router is away"), "the router is away"), (TimeoutError(), "TimeoutError")]
)
@pytest.mark.parametrize("killed", [True, False])
async def test_an_engine_is_not_left_behind_where_its_router_cannot_be_closed(
    killed: bool, away: Exception, said: str
) -> None:
    fleet = await fleet_with(OWN)
    await fleet.offload(weights=V1)
    fleet["a"].adapter.script("restore", DIE if killed else LOST_AFTER)
    fleet.router.close_fails = away
    with pytest.raises(FleetError, match=f"its router could not be closed: {said}"):
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
