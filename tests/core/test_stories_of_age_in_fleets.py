"""Stories of a fleet of which somebody else moved an engine, before the move and in the middle of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rig import V1, fleet_of, states

from lifecycle import Contents, Fleet, FleetError, State
from lifecycle.testing import DONE


@pytest.mark.parametrize("opens", [True, False])
async def test_an_offload_plans_from_what_is_found_of_a_released_engine(opens: bool) -> None:
    fleet, journal = await fleet_of("a", "b")
    await fleet.offload(weights=V1)
    model = fleet["a"].adapter.engine
    model.apply("restore", {"tags": ["weights", "kv_cache"]})
    if opens:
        model.apply("resume", {})
    journal.clear()
    await fleet.offload(weights=V1)
    assert [call for call in journal.calls() if "release" in call] == ["a: release(kv_cache)", "a: release(weights)"]
    assert states(fleet) == {"a": "released", "b": "released"}
    assert model.deaths == []
    assert all(engine.memory_is_free for engine in fleet)


async def released_and_restored_by_another(call: str) -> Fleet:
    """A fleet of which `a` is released; somebody else restores it when `b` gets this call."""
    fleet, _ = await fleet_of("a", "b")
    await fleet.offload(weights=V1, engines=["a"])
    model = fleet["a"].adapter.engine

    def restored(other: Any) -> None:
        model.apply("restore", {"tags": sorted(model.unmapped)})

    fleet["b"].adapter.script(call, replace(DONE, then=restored))
    return fleet


async def test_one_that_is_restored_while_the_others_are_released_lets_no_trainer_in() -> None:
    fleet = await released_and_restored_by_another("release")
    with pytest.raises(FleetError):
        await fleet.offload(weights=V1)
    assert fleet["a"].adapter.engine.deaths == []
    assert not fleet["a"].memory_is_free


async def test_one_that_is_restored_while_the_others_are_drained_is_released_with_them() -> None:
    fleet = await released_and_restored_by_another("pause")
    await fleet.offload(weights=V1)
    model = fleet["a"].adapter.engine
    assert model.deaths == []
    assert model.unmapped == {"weights", "kv_cache"}
    assert fleet["a"].memory_is_free


async def test_none_is_released_by_hand_beside_one_that_somebody_opened() -> None:
    fleet, journal = await fleet_of("a", "b")
    await fleet.pause()
    await fleet.drain()
    model = fleet["a"].adapter.engine
    model.apply("resume", {})
    model.submit()
    journal.clear()
    with pytest.raises(FleetError, match="a: release refused in state paused"):
        await fleet.release(weights=V1)
    assert not any("release" in call for call in journal.calls())


async def test_one_that_somebody_opened_is_drained_before_the_others_are_released() -> None:
    """Seen by the state machine of a fleet (seed 971779): the others were released beside it."""
    fleet, journal = await fleet_of("a", "b")
    await fleet.offload(weights=V1)
    await fleet.restore_weights()
    model = fleet["a"].adapter.engine
    model.apply("restore", {"tags": sorted(model.unmapped)})
    model.apply("resume", {})
    model.submit()
    journal.clear()
    await fleet.offload(weights=V1)
    calls = journal.calls()
    assert calls.index("a: pause(abort)") < min(index for index, call in enumerate(calls) if "release" in call)
    assert model.deaths == fleet["b"].adapter.engine.deaths == []


async def test_one_that_is_opened_while_the_others_are_drained_holds_up_the_release_of_all() -> None:
    fleet, journal = await fleet_of("a", "b")
    await fleet.pause(engines=["a"])
    await fleet.drain(engines=["a"])
    model = fleet["a"].adapter.engine
    fleet["b"].adapter.script("pause", replace(DONE, then=lambda other: model.apply("resume", {})))
    journal.clear()
    with pytest.raises(FleetError, match=r"a: .*the move cannot go on with it from here"):
        await fleet.offload(weights=V1)
    assert not any("release" in call for call in journal.calls())


async def test_an_onload_brings_home_what_was_believed_to_serve() -> None:
    fleet, _ = await fleet_of("a", "b")
    await fleet.offload(weights=V1)
    await fleet.onload()
    fleet["a"].adapter.engine.apply("pause", {"mode": "abort"})
    fleet["b"].adapter.engine.apply("pause", {"mode": "abort"})
    fleet["b"].adapter.engine.apply("release", {"tags": ["weights"]})
    await fleet.onload()
    for engine in fleet:
        assert engine.state is State.SERVING
        assert engine.facts.contents == {"weights": Contents("loaded", "v1")}
        assert engine.adapter.engine.submit()
        assert engine.adapter.engine.violations == engine.adapter.engine.deaths == []
