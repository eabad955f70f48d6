"""Engines that restore at their own pace: off unless it is asked for, and never where they need each other."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rig import V1, V2, fleet_of, states

from lifecycle import BaseObserver, Engine, Fleet, FleetError, FromDisk, Pushed, State
from lifecycle.core.errors import ConfigurationError
from lifecycle.core.observer import MoveEvent, Observers
from lifecycle.core.units import GIB
from lifecycle.store import Tenants
from lifecycle.testing import LOST_AFTER, QUICK, REJECTED, ScriptedAdapter


class Phases(BaseObserver):
    """The phases that ended, in order."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def phase(self, event: MoveEvent) -> None:
        """One began or ended."""
        if event.duration_s is not None:
            self.ended.append(event.phase)


async def offloaded(*names: str, **how: Any) -> tuple[Fleet, Phases]:
    fleet, journal = await fleet_of(*names, **how)
    await fleet.offload(weights=V1)
    phases = Phases()
    for engine in fleet:
        engine._session.observers = Observers([phases])
    journal.clear()
    return fleet, phases


def held_back(fleet: Fleet, name: str) -> asyncio.Event:
    """This engine loads its weights only once the event is set."""
    go, adapter = asyncio.Event(), fleet[name].adapter
    send = adapter.send

    async def waits(call: Any, *, deadline_s: float) -> Any:
        if call.name == "load":
            await go.wait()
        return await send(call, deadline_s=deadline_s)

    adapter.send = waits
    return go


async def until(fleet: Fleet, name: str, state: State) -> None:
    async with asyncio.timeout(5):  # each turn may move it
        while fleet[name].state is not state:  # noqa: ASYNC110 - a state has no event
            await asyncio.sleep(0)


@pytest.mark.parametrize("overlap", [True, False])
async def test_one_restores_its_kv_while_another_loads_only_where_that_is_asked_for(overlap: bool) -> None:
    fleet, phases = await offloaded("a", "b")
    go = held_back(fleet, "b")
    moving = asyncio.ensure_future(fleet.onload(overlap=overlap))
    await until(fleet, "b", State.UPDATING_WEIGHTS)
    await until(fleet, "a", State.KV_RESTORED if overlap else State.WEIGHTS_RESTORED)
    for _ in range(50):
        await asyncio.sleep(0)
    assert states(fleet)["a"] == ("kv_restored" if overlap else "weights_restored"), "and it goes no further"
    go.set()
    done = await moving
    assert [each.engine for each in done] == ["a", "b"]
    assert set(states(fleet).values()) == {"serving"}
    three = ["restore"] if overlap else ["restore_weights", "update_weights", "restore_kv"]
    assert [each for each in phases.ended if each] == ["pause", "drain", *three, "resume"]


async def test_one_that_fails_is_released_again_and_the_others_serve() -> None:
    fleet, _ = await offloaded("a", "b", "c")
    fleet["b"].adapter.script("load", REJECTED)
    with pytest.raises(FleetError) as failed:
        await fleet.onload(overlap=True)
    assert [error.engine for error in failed.value.exceptions] == ["b"]
    assert "released again" in str(failed.value.exceptions[0])
    assert states(fleet) == {"a": "serving", "b": "released", "c": "serving"}


async def test_one_whose_restore_failed_loads_nothing() -> None:
    fleet, _ = await offloaded("a", "b")
    fleet["b"].adapter.script("restore", LOST_AFTER)  # it is found weights_restored
    with pytest.raises(FleetError):
        await fleet.onload(overlap=True)
    assert not any(call.startswith("load") for call in fleet["b"].adapter.journal.calls("b"))
    assert states(fleet) == {"a": "serving", "b": "released"}


async def test_where_they_are_held_a_failed_one_stays_where_it_was_found() -> None:
    fleet, _ = await offloaded("a", "b", policy=replace(QUICK, on_failure="hold"))
    fleet["b"].adapter.script("load", REJECTED)
    with pytest.raises(FleetError):
        await fleet.onload(overlap=True)
    assert states(fleet) == {"a": "serving", "b": "weights_restored"}


async def test_a_step_between_needs_the_weights_of_all() -> None:
    fleet, _ = await offloaded("a", "b")
    with pytest.raises(ConfigurationError, match="leave out one"):
        await fleet.onload(overlap=True, between=lambda: None)
    assert set(states(fleet).values()) == {"released"}


@pytest.mark.parametrize("named", [True, False])
async def test_a_push_is_to_all_at_once(named: bool) -> None:
    source = Pushed(lambda engines: None, "v2")
    fleet, journal = await fleet_of("a", "b")
    await fleet.offload(weights=V1 if named else source)
    journal.clear()
    with pytest.raises(ConfigurationError, match="the weights of a, b are pushed"):
        await fleet.onload(overlap=True, weights=source if named else None)
    assert journal.calls() == []


async def test_with_a_ledger_all_restore_their_weights_before_any_restores_its_kv(tmp_path: Path) -> None:
    ledger = Tenants(tmp_path / "tenants", pipeline="p", budgets={"gpu-0": 64 * GIB})
    adapters = [ScriptedAdapter(name, devices=("gpu-0",)) for name in "ab"]
    engines = [Engine(each, name=each.name, policy=QUICK, probe=each.probe, tenants=ledger) for each in adapters]
    fleet = Fleet(engines)
    for engine in fleet:
        await engine.connect()
    await fleet.offload(weights=V2)
    phases = Phases()
    for engine in fleet:
        engine._session.observers = Observers([phases])
    await fleet.onload(overlap=True)
    assert "restore" not in phases.ended
    assert "restore_kv" in phases.ended


async def test_weights_that_are_named_now_are_loaded() -> None:
    fleet, _ = await offloaded("a", "b")
    await fleet.onload(overlap=True, weights=FromDisk("/models/step-9", "v9"))
    assert {engine.desired.version for engine in fleet} == {"v9"}
