"""`ensure(weights=)` names what engines serve or come back with, also those that are in that state already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rig import V1, V2, engine_in, fleet_of, states

from lifecycle import (
    ConfigurationError,
    Engine,
    EngineHeld,
    Fleet,
    FleetError,
    FromDisk,
    GuardRefused,
    Kept,
    Pushed,
    State,
)
from lifecycle.store.leases import Leases
from lifecycle.testing import QUICK, REJECTED, ScriptedAdapter

RELEASED_OR_RESTORED = pytest.mark.parametrize("state", [State.RELEASED, State.WEIGHTS_RESTORED], ids=str)


def versions(fleet: Fleet) -> set[str | None]:
    return {engine.weights_version for engine in fleet}


async def to(fleet: Fleet, state: State) -> None:
    await fleet.ensure(State.RELEASED, weights=V1, deadline_s=5.0)
    await fleet.ensure(state, weights=V1, deadline_s=5.0)


async def test_one_that_is_released_already_comes_back_with_the_version_of_the_others() -> None:
    fleet, _ = await fleet_of("a", "b", router=True)
    await fleet.offload(weights=V1, engines=["a"])
    done = await fleet.ensure("released", weights=V2, deadline_s=5.0)
    assert [each.engine for each in done] == ["b"]
    assert {each.desired.version for each in fleet} == {"v2"}
    await fleet.onload()
    assert versions(fleet) == {"v2"}


@RELEASED_OR_RESTORED
async def test_where_all_are_there_what_they_come_back_with_is_named_and_nothing_sent(state: State) -> None:
    fleet, journal = await fleet_of("a", "b")
    await to(fleet, state)
    journal.clear()
    assert await fleet.ensure(state, weights=V2, deadline_s=5.0) == []
    assert journal.calls() == []
    assert {each.desired.source for each in fleet} == {V2}
    await fleet.ensure("serving", deadline_s=5.0)
    assert versions(fleet) == {"v2"}


async def test_a_fleet_that_is_partly_restored_has_one_version() -> None:
    fleet, _ = await fleet_of("a", "b")
    await fleet.ensure("released", weights=V1, deadline_s=5.0)
    await fleet.ensure("weights_restored", engines=["a"], deadline_s=5.0)
    done = await fleet.ensure("weights_restored", weights=V2, deadline_s=5.0)
    assert [each.engine for each in done] == ["b"]
    await fleet.onload()
    assert versions(fleet) == {"v2"}


@RELEASED_OR_RESTORED
async def test_an_engine_alone_is_named_its_weights_too(state: State) -> None:
    engine = await engine_in(state)
    assert await engine.ensure(state, weights=V2, deadline_s=5.0) == []
    assert engine.adapter.journal.calls() == []
    assert engine.desired.source == V2
    await engine.ensure("serving", deadline_s=5.0)
    assert engine.weights_version == "v2"


async def test_one_that_serves_what_is_named_is_to_serve_it_and_is_left_with_its_source() -> None:
    fleet, journal = await fleet_of("a")
    async with fleet.offloaded(weights=V1):
        pass
    engine = fleet["a"]
    for ensuring in (engine.ensure, fleet.ensure):
        engine.set_desired(V2)
        journal.clear()
        assert await ensuring("serving", weights=V1, deadline_s=5.0) == []
        assert journal.calls() == []
        assert engine.desired.version == "v1"
        assert await ensuring("serving", weights=FromDisk("/elsewhere", "v1"), deadline_s=5.0) == []
        assert engine.desired.source == V1, "it holds that version"


async def test_what_was_named_wins_over_what_was_to_be_served_where_it_is_there_already() -> None:
    fleet, journal = await fleet_of("a")
    async with fleet.offloaded(weights=V1):
        pass
    await fleet.offload(["kv_cache"])
    fleet["a"].set_desired(V2)
    journal.clear()
    await fleet.onload(weights=V1)
    assert "load" not in journal.calls()
    assert versions(fleet) == {"v1"}
    for ensuring in (fleet["a"].ensure, fleet.ensure):
        await fleet.offload(["kv_cache"])
        fleet["a"].set_desired(V2)
        await ensuring("serving", weights=V1, deadline_s=5.0)
        assert versions(fleet) == {"v1"}


async def test_a_push_by_another_callback_is_named_anew() -> None:
    async def stale(engines: Sequence[Engine]) -> None:
        raise AssertionError("the trainer of before was asked")

    async def push(engines: Sequence[Engine]) -> None:
        for each in engines:
            await each.push("tensor")

    fleet, _ = await fleet_of("a")
    await fleet.ensure("released", weights=Pushed(stale, "v9", name="trainer"), deadline_s=5.0)
    await fleet.ensure("released", weights=Pushed(push, "v9", name="trainer"), deadline_s=5.0)
    await fleet.onload()
    assert versions(fleet) == {"v9"}


@pytest.mark.parametrize("source", [Kept(), FromDisk("", "v1")], ids=["kept", "nowhere"])
async def test_weights_that_nothing_brings_back_are_refused_for_one_that_is_released(source: Any) -> None:
    fleet, journal = await fleet_of("a")
    await fleet.offload(weights=V1)
    journal.clear()
    with pytest.raises(FleetError, match="weights_recoverable"):
        await fleet.ensure("released", weights=source, deadline_s=5.0)
    with pytest.raises(GuardRefused, match=r"ensure\(released\) refused in state released: weights_recoverable"):
        await fleet["a"].ensure("released", weights=source, deadline_s=5.0)
    assert journal.calls() == []
    assert fleet["a"].desired.source == V1


async def test_where_the_others_cannot_be_released_all_are_to_serve_what_they_did() -> None:
    fleet, _ = await fleet_of("a", "b")
    await fleet.offload(weights=V1, engines=["a"])
    fleet["b"].adapter.script("pause", REJECTED)
    with pytest.raises(FleetError, match="b: pause failed"):
        await fleet.ensure("released", weights=V2, deadline_s=5.0)
    assert states(fleet) == {"a": "serving", "b": "serving"}
    assert fleet["a"].weights_version == "v1"


@pytest.mark.parametrize("state", ["paused", "drained"])
async def test_no_weights_are_named_for_one_that_keeps_those_that_it_has(state: str) -> None:
    fleet, journal = await fleet_of("a")
    for ensuring in (fleet.ensure, fleet["a"].ensure):
        with pytest.raises(ConfigurationError, match=rf"ensure\('{state}', weights=...\): .* leave weights= out"):
            await ensuring(state, weights=V1, deadline_s=5.0)
    assert journal.calls() == []


async def test_what_one_driver_has_released_another_does_not_name_weights_for(tmp_path: Path) -> None:
    adapter, policy = ScriptedAdapter("e"), replace(QUICK, evidence_max_age_s=60.0)
    one, other = (
        Engine(adapter, name="e", policy=policy, probe=adapter.probe, lease=Leases(tmp_path / "leases")) for _ in "12"
    )
    await one.connect()
    await one.ensure("released", weights=V1, deadline_s=5.0)
    await other.connect()
    assert other.state is State.RELEASED
    await other.verify()
    for ensuring in (other.ensure, Fleet([other]).ensure):
        with pytest.raises(EngineHeld):
            await ensuring("released", weights=V2, deadline_s=5.0)
        assert other.desired.version != "v2"
