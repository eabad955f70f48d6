"""When some fail: policy `restore`, the table of design section 7, one test a row and what each engine is left as."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rig import V1, fleet_of, states

from lifecycle import Engine, FleetError, NotProved, OperationFailed, Pushed, Refuted, State
from lifecycle.testing import DIE, HANG, LOST_AFTER, QUICK, REJECTED, REJECTED_AFTER, Act

ABC = ("a", "b", "c")


async def push_to_all(engines: Sequence[Engine]) -> None:
    await asyncio.gather(*(engine.push("tensor") for engine in engines))


@pytest.mark.parametrize(("act", "ends"), [(REJECTED, "serving"), (LOST_AFTER, "serving"), (DIE, "gone")])
async def test_a_failed_pause_and_the_others_serve(act: Act, ends: str) -> None:
    fleet, journal = await fleet_of(*ABC, router=True)
    fleet["b"].adapter.script("pause", act)
    with pytest.raises(FleetError, match="1 of 3 engines: b: pause failed") as failed:
        await fleet.offload(weights=V1, deadline_s=1)
    assert states(fleet) == {"a": "serving", "b": ends, "c": "serving"}
    assert [record.engine for record in failed.value.succeeded] == ["a", "c"]
    assert not any("release" in call for call in journal.calls())
    assert fleet.router.closed == ({"b"} if ends == "gone" else set())
    assert all(engine.adapter.engine.submit() for engine in fleet if engine.state is State.SERVING)


async def test_a_failed_drain_and_all_serve() -> None:
    fleet, journal = await fleet_of(*ABC, router=True)
    fleet["b"].adapter.always("prove_idle", None)
    fleet["b"].adapter.engine.stubborn = -1
    with pytest.raises(FleetError, match="b: drain failed in state paused") as failed:
        await fleet.offload(weights=V1, deadline_s=0.2)
    assert states(fleet) == dict.fromkeys(ABC, "serving")
    assert isinstance(failed.value.exceptions[0], NotProved)
    assert failed.value.exceptions[0].settled is State.PAUSED
    assert not any("release" in call for call in journal.calls())
    assert fleet.router.closed == set()


async def test_a_failed_release_and_the_others_serve() -> None:
    """The failed one is released with memory_returned refuted; its devices are nobody's."""
    fleet, journal = await fleet_of(*ABC, router=True)
    fleet["b"].adapter.engine.frees = False
    with pytest.raises(FleetError, match=r"b: release failed.*memory_returned") as failed:
        await fleet.offload(weights=V1, deadline_s=0.2)
    assert states(fleet) == {"a": "serving", "b": "released", "c": "serving"}
    assert isinstance(fleet["b"].conditions["memory_returned"].verdict, Refuted)
    assert not any(engine.memory_is_free for engine in fleet)
    assert [record.engine for record in failed.value.succeeded] == ["a", "c"]
    assert fleet.router.closed == {"b"}
    assert "a: load(/models/step-1,v1,True)" in journal.calls()
    fleet["b"].adapter.engine.frees = True
    await fleet.onload()
    assert states(fleet) == dict.fromkeys(ABC, "serving")
    assert fleet.router.closed == set()


async def test_an_engine_that_dies_in_the_release_is_gone_and_the_others_serve() -> None:
    fleet, _ = await fleet_of(*ABC)
    fleet["b"].adapter.script("release", DIE)
    with pytest.raises(FleetError, match=r"b: release failed.*settled to gone"):
        await fleet.offload(weights=V1, deadline_s=1)
    assert states(fleet) == {"a": "serving", "b": "gone", "c": "serving"}
    assert fleet["b"].memory_is_free


async def test_a_failed_release_with_a_push_alone_leaves_the_others_released_and_says_so() -> None:
    fleet, _ = await fleet_of(*ABC)
    fleet["b"].adapter.engine.frees = False
    with pytest.raises(FleetError, match="only the trainer can make that") as failed:
        await fleet.offload(weights=Pushed(push_to_all, "v1"), deadline_s=0.2)
    assert states(fleet) == dict.fromkeys(ABC, "released")
    assert len(failed.value.exceptions) == 3
    assert fleet["a"].memory_is_free
    assert not fleet["b"].memory_is_free


@pytest.mark.parametrize(
    ("call", "command"),
    [("restore", "restore_weights"), ("load", "update_weights"), ("flush", "restore_kv")],
)
async def test_a_failed_onload_is_released_again_and_the_others_serve(call: str, command: str) -> None:
    fleet, _ = await fleet_of(*ABC, router=True)
    await fleet.offload(weights=V1)
    fleet["b"].adapter.script(call, REJECTED if call != "restore" else LOST_AFTER)
    with pytest.raises(FleetError, match=f"b: {command} failed"):
        await fleet.onload(deadline_s=1)
    assert states(fleet) == {"a": "serving", "b": "released", "c": "serving"}
    assert fleet["b"].memory_is_free
    assert fleet["b"].adapter.engine.unmapped == {"weights", "kv_cache"}
    assert fleet.router.closed == {"b"}
    await fleet.onload()
    assert states(fleet) == dict.fromkeys(ABC, "serving")


async def test_one_that_cannot_be_released_again_keeps_its_devices_and_says_so() -> None:
    fleet, _ = await fleet_of(*ABC)
    await fleet.offload(weights=V1)
    fleet["b"].adapter.script("load", REJECTED)
    fleet["b"].adapter.script("release", REJECTED_AFTER)
    with pytest.raises(FleetError, match="b: update_weights failed"):
        await fleet.onload(deadline_s=0.3)
    assert states(fleet)["a"] == states(fleet)["c"] == "serving"
    assert not fleet["b"].memory_is_free


async def test_a_failed_push_on_the_way_back_releases_all_again() -> None:
    fleet, _ = await fleet_of(*ABC)
    await fleet.offload(weights=Pushed(push_to_all, "v1"))
    fleet["b"].adapter.script("push_tensor", REJECTED)
    with pytest.raises(FleetError, match="push failed for every engine"):
        await fleet.onload(deadline_s=1)
    assert states(fleet) == dict.fromkeys(ABC, "released")
    assert all(engine.memory_is_free for engine in fleet)
    await fleet.onload()
    assert states(fleet) == dict.fromkeys(ABC, "serving")


async def test_one_that_does_not_answer_is_closed_again_and_its_router_stays_closed() -> None:
    fleet, _ = await fleet_of(*ABC, router=True)
    await fleet.offload(weights=V1)
    fleet["b"].adapter.script("answers", Refuted(reason="it generated no token"))
    with pytest.raises(FleetError, match=r"b: resume failed.*it generated no token") as failed:
        await fleet.onload(deadline_s=1)
    assert states(fleet)["a"] == states(fleet)["c"] == "serving"
    assert fleet["b"].state in (State.PAUSED, State.DRAINED)
    assert fleet["b"].adapter.engine.admission == "closed"
    assert fleet.router.closed == {"b"}
    assert [record.engine for record in failed.value.succeeded if record.command == "resume"] == ["a", "c"]
    await fleet.onload()
    assert fleet.router.closed == set()


@pytest.mark.parametrize("call", ["pause", "release"])
async def test_hold_leaves_everything_where_it_is(call: str) -> None:
    fleet, journal = await fleet_of(*ABC, policy=replace(QUICK, on_failure="hold"))
    fleet["b"].adapter.script(call, DIE)
    with pytest.raises(FleetError):
        await fleet.offload(weights=V1, deadline_s=1)
    assert states(fleet) == dict.fromkeys(ABC, "paused" if call == "pause" else "released") | {"b": "gone"}
    assert not any("resume" in call for call in journal.calls())


async def test_hold_leaves_a_failed_onload_where_it_settled() -> None:
    fleet, _ = await fleet_of(*ABC, policy=replace(QUICK, on_failure="hold"))
    await fleet.offload(weights=V1)
    fleet["b"].adapter.script("load", REJECTED)
    with pytest.raises(FleetError):
        await fleet.onload(deadline_s=1)
    assert states(fleet) == {"a": "serving", "b": "weights_restored", "c": "serving"}


async def test_the_error_names_all_that_failed_and_where_each_settled() -> None:
    fleet, _ = await fleet_of("a", "b", "c", "d")
    fleet["b"].adapter.script("release", DIE)
    fleet["d"].adapter.engine.frees = False
    with pytest.raises(FleetError) as failed:
        await fleet.offload(weights=V1, deadline_s=0.2)
    settled = {error.engine: error.settled for error in failed.value.exceptions if isinstance(error, OperationFailed)}
    assert settled == {"b": State.GONE, "d": State.RELEASED}
    assert str(failed.value).startswith("2 of 4 engines: b: release failed")
    assert "d: release failed" in str(failed.value)
    assert {record.engine for record in failed.value.succeeded} == {"a", "c"}
    assert failed.value.subgroup(NotProved).succeeded == failed.value.succeeded


async def test_everything_that_fails_on_the_way_back_is_told_too() -> None:
    fleet, _ = await fleet_of(*ABC)
    fleet["b"].adapter.engine.frees = False
    fleet["c"].adapter.script("load", REJECTED)
    with pytest.raises(FleetError, match=r"(?s)b: release failed.*c: update_weights failed"):
        await fleet.offload(weights=V1, deadline_s=0.3)
    assert states(fleet) == {"a": "serving", "b": "released", "c": "released"}


async def test_a_release_that_was_lost_and_never_happened_serves_again() -> None:
    fleet, _ = await fleet_of(*ABC)
    fleet["b"].adapter.script("release", Act("lost", "never"))
    with pytest.raises(FleetError, match="b: release failed"):
        await fleet.offload(weights=V1, deadline_s=1)
    assert states(fleet) == dict.fromkeys(ABC, "serving")


async def test_one_that_hangs_does_not_hold_up_the_others_for_longer_than_the_deadline() -> None:
    fleet, _ = await fleet_of(*ABC)
    fleet["b"].adapter.script("release", HANG)
    begun = asyncio.get_running_loop().time()
    with pytest.raises(FleetError):
        await fleet.offload(weights=V1, deadline_s=0.3)
    assert asyncio.get_running_loop().time() - begun < 1
    assert states(fleet)["a"] == states(fleet)["c"] == "serving"


async def test_a_cancelled_offload_can_be_brought_back() -> None:
    fleet, _ = await fleet_of(*ABC, router=True)
    fleet["b"].adapter.engine.stubborn = -1
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await fleet.offload(weights=V1)
    assert not any(engine.in_move or engine.busy for engine in fleet)
    fleet["b"].adapter.engine.stubborn = 0
    for engine in fleet:
        if engine.state is State.FAILED:
            await engine.recover()
    await fleet.onload()
    assert states(fleet) == dict.fromkeys(ABC, "serving")
    assert fleet.router.closed == set()
