"""`offloaded()`: whoever enters it, whenever, and however it is left, the fleet serves what was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from rig import V1, V2, fleet_of, states

from lifecycle import Engine, EngineBusy, Fleet, FleetError, FromDisk, GuardRefused, Kept, Policy, Pushed, State
from lifecycle.testing import HANG, REJECTED


def contents(fleet: Fleet) -> set[str]:
    """What the engines' weights are."""
    return {str(held) for engine in fleet for held in engine.facts.contents.values()}


@pytest.mark.parametrize("released", [["a"], ["a", "b"]])
async def test_an_engine_that_was_released_before_comes_back_with_what_the_window_names(released: list[str]) -> None:
    fleet, _ = await fleet_of("a", "b")
    await fleet.offload(weights=V1, engines=released)
    async with fleet.offloaded(weights=V2):
        assert states(fleet) == {"a": "released", "b": "released"}
    assert states(fleet) == {"a": "serving", "b": "serving"}
    assert contents(fleet) == {"loaded(v2)"}


async def test_an_offload_that_names_nothing_leaves_the_source_that_was_declared() -> None:
    fleet, _ = await fleet_of("a")
    await fleet.offload(weights=V1)
    await fleet.onload()
    await fleet.offload(weights=V2)
    await fleet.offload()
    await fleet.onload()
    assert contents(fleet) == {"loaded(v2)"}


async def test_weights_that_were_given_up_cannot_be_kept_afterwards() -> None:
    fleet, journal = await fleet_of("a")
    await fleet.offload(weights=V1)
    journal.clear()
    with pytest.raises(FleetError, match="weights_recoverable") as refused:
        await fleet.offload(weights=Kept())
    assert isinstance(refused.value.exceptions[0], GuardRefused)
    assert journal.calls() == []
    await fleet.onload()
    assert contents(fleet) == {"loaded(v1)"}


async def test_an_offload_that_fails_declares_nothing() -> None:
    fleet, _ = await fleet_of("a", "b")
    await fleet.offload(weights=V1, engines=["a"])
    fleet["b"].adapter.script("pause", REJECTED)
    with pytest.raises(FleetError):
        await fleet.offload(weights=V2)
    assert states(fleet) == {"a": "serving", "b": "serving"}
    assert str(fleet["a"].facts.contents["weights"]) == "loaded(v1)"


async def test_a_second_window_on_an_engine_is_refused_while_its_memory_is_lent() -> None:
    fleet, journal = await fleet_of("a", "b")
    async with fleet.offloaded(weights=V1, engines=["a"]):
        journal.clear()
        with pytest.raises(EngineBusy, match="another offloaded"):
            async with fleet.offloaded(weights=V2):
                raise AssertionError("entered")
        assert journal.calls() == []
        async with fleet.offloaded(weights=V2, engines=["b"]):
            assert states(fleet) == {"a": "released", "b": "released"}
        assert states(fleet) == {"a": "released", "b": "serving"}
    assert states(fleet) == {"a": "serving", "b": "serving"}
    async with fleet.offloaded(weights=V2):
        pass


@pytest.mark.virtual_time
async def test_cancelled_on_the_way_out_it_comes_home_and_the_cancellation_comes_through() -> None:
    fleet, _ = await fleet_of("a", "b")
    fleet["a"].adapter.script("release", HANG)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), fleet.offloaded(weights=V1):
            raise AssertionError("entered")
    assert states(fleet) == {"a": "serving", "b": "serving"}


@pytest.mark.virtual_time
async def test_cancelled_on_the_way_home_it_still_brings_the_new_weights() -> None:
    fleet, _ = await fleet_of("a", "b")
    fleet["a"].adapter.script("load", HANG)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), fleet.offloaded(weights=V1):
            pass
    assert states(fleet) == {"a": "serving", "b": "serving"}
    assert contents(fleet) == {"loaded(v1)"}


@pytest.mark.virtual_time
async def test_under_hold_a_cancelled_window_leaves_the_engines_where_they_are() -> None:
    fleet, _ = await fleet_of("a", policy=Policy(on_failure="hold", settle_s=0.05, poll_s=0.001))
    fleet["a"].adapter.script("release", HANG)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), fleet.offloaded(weights=V1):
            raise AssertionError("entered")
    assert fleet["a"].state is State.FAILED


async def test_the_error_says_that_an_engine_was_released_again() -> None:
    fleet, _ = await fleet_of("a")
    fleet["a"].adapter.script("load", REJECTED)
    await fleet.offload(weights=V1)
    with pytest.raises(FleetError, match="It settled to released, where it was released again") as failed:
        await fleet.onload()
    assert failed.value.exceptions[0].settled is fleet["a"].state is State.RELEASED


async def never(engines: Sequence[Engine]) -> None:
    raise AssertionError("the trainer was asked for weights of a step that failed")


async def test_a_trainer_whose_step_failed_is_not_asked_to_push() -> None:
    fleet, _ = await fleet_of("a", "b")
    with pytest.raises(ZeroDivisionError) as failed:
        async with fleet.offloaded(weights=Pushed(never, "v2")):
            _ = 1 / 0
    assert states(fleet) == {"a": "released", "b": "released"}
    assert sum("only the trainer" in note for note in failed.value.__notes__) == 2


@pytest.mark.virtual_time
async def test_a_trainer_that_is_cancelled_is_not_asked_to_push_either() -> None:
    fleet, _ = await fleet_of("a", "b")
    await fleet.offload(weights=V1)
    await fleet.onload()
    fleet["a"].adapter.script("release", HANG)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), fleet.offloaded(weights=Pushed(never, "v2")):
            raise AssertionError("entered")
    assert states(fleet) == {"a": "serving", "b": "serving"}
    assert contents(fleet) == {"loaded(v1)"}


async def test_pushed_weights_that_are_still_there_need_no_trainer() -> None:
    fleet, _ = await fleet_of("a", "b")

    async def push(engines: Sequence[Engine]) -> None:
        for engine in engines:
            await engine.push("tensor")

    async with fleet.offloaded(weights=Pushed(push, "v2")):
        pass
    with pytest.raises(ZeroDivisionError):
        async with fleet.offloaded(["kv_cache"]):
            _ = 1 / 0
    fleet["b"].adapter.script("release", REJECTED)
    with pytest.raises(FleetError):
        await fleet.offload(["kv_cache"])
    assert states(fleet) == {"a": "serving", "b": "serving"}
    assert contents(fleet) == {"loaded(v2)"}


@pytest.mark.parametrize("source", [FromDisk("/models/a", " "), FromDisk("", "v1")])
async def test_a_source_that_can_bring_nothing_back_is_refused_before_the_release(source: FromDisk) -> None:
    fleet, journal = await fleet_of("a")
    with pytest.raises(FleetError, match=r"weights_recoverable: the source .* empty"):
        await fleet.offload(weights=source)
    assert journal.calls() == []
