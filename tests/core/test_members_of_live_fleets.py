"""Engines that join a live fleet: between its moves, at its state and version, before the router sends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from members_rig import driven, newcomer, serving_v1
from rig import V1, V2, fleet_of, states

from lifecycle import (
    ConfigurationError,
    EngineBusy,
    FleetError,
    InvalidTransition,
    OperationFailed,
    Pushed,
    State,
)
from lifecycle.core.errors import NothingListens
from lifecycle.testing import HANG, REJECTED, ScriptedAdapter

# adopt


async def test_a_newcomer_has_the_version_of_the_fleet_before_its_router_opens() -> None:
    fleet, journal = await serving_v1("a", "b")
    engine = await fleet.adopt(newcomer(journal), deadline_s=5.0)
    assert fleet["c"] is engine
    assert [each.name for each in fleet] == ["a", "b", "c"]
    assert (engine.state, engine.weights_version) == (State.SERVING, "v1")
    assert not journal.calls("a") + journal.calls("b")
    whole = [f"{entry.kind} {entry.name}".strip() for entry in journal if entry.engine == "c"]
    opened = whole.index("router open")
    assert whole.index("router close") < whole.index("call pause") < whole.index("call load") < opened
    assert whole.index("answers") < opened
    assert fleet.router.closed == set()
    async with fleet.offloaded(weights=V2) as window:
        assert [each.name for each in window.engines] == ["a", "b", "c"]
    assert {each.weights_version for each in fleet} == {"v2"}


async def test_one_that_has_the_version_already_is_let_in_as_it_is() -> None:
    fleet, journal = await serving_v1("a")
    await fleet.adopt(newcomer(journal, version="v1"), deadline_s=5.0)
    assert journal.calls("c") == []
    assert states(fleet) == {"a": "serving", "c": "serving"}
    assert fleet.router.closed == set()


async def test_while_the_fleet_is_released_a_newcomer_is_released_too() -> None:
    fleet, journal = await serving_v1("a")
    await fleet.offload(weights=V2)
    engine = await fleet.adopt(newcomer(journal), deadline_s=5.0)
    assert engine.memory_is_free
    assert states(fleet) == {"a": "released", "c": "released"}
    assert fleet.router.closed == {"a", "c"}
    await fleet.onload()
    assert {each.weights_version for each in fleet} == {"v2"}
    assert fleet.router.closed == set()


async def test_where_to_and_with_what_may_be_said() -> None:
    fleet, journal = await serving_v1("a")
    engine = await fleet.adopt(newcomer(journal), to="released", weights=V2, deadline_s=5.0)
    assert (engine.state, engine.desired.version) == (State.RELEASED, "v2")
    other = await fleet.adopt(newcomer(journal, "d"), to="serving", weights=V2, deadline_s=5.0)
    assert (other.state, other.weights_version) == (State.SERVING, "v2")


async def test_a_fleet_that_is_neither_here_nor_there_wants_to_be_told() -> None:
    fleet, journal = await serving_v1("a")
    await fleet.pause()
    journal.clear()
    with pytest.raises(ConfigurationError, match=r"neither serving nor released \(a paused\): say to='serving'"):
        await fleet.adopt(newcomer(journal), deadline_s=5.0)
    with pytest.raises(ConfigurationError, match="to='paused': one of serving, released"):
        await fleet.adopt(newcomer(journal), to="paused", deadline_s=5.0)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="deadline_s must be a finite number > 0"):
        await fleet.adopt(newcomer(journal), deadline_s=0.0)
    with pytest.raises(ConfigurationError, match="is no source of weights"):
        await fleet.adopt(newcomer(journal), weights="v1", deadline_s=1.0)  # type: ignore[arg-type]
    assert (journal.calls(), len(fleet)) == ([], 1)


async def test_the_version_is_that_of_its_group() -> None:
    fleet, journal = await fleet_of("policy/a", "teacher/b", router=True)
    await fleet.offload(weights=V1, engines=["a"])
    await fleet.onload()
    journal.clear()
    teacher = await fleet.adopt(newcomer(journal, group="teacher"), deadline_s=5.0)
    policy = await fleet.adopt(newcomer(journal, "d", group="policy"), deadline_s=5.0)
    other = await fleet.adopt(newcomer(journal, "e", group="judge"), deadline_s=5.0)
    assert [each.weights_version for each in (teacher, policy, other)] == ["v0", "v1", "v0"]
    assert [each.name for each in fleet] == ["a", "d", "b", "c", "e"], "in the groups' order"
    assert set(fleet.groups) == {"policy", "teacher", "judge"}


async def test_a_version_that_nothing_brings_is_refused() -> None:
    fleet, journal = await fleet_of("a", "b", router=True)
    with pytest.raises(ConfigurationError, match="group default serves v0, c has v7, and nothing that is known brings"):
        await fleet.adopt(newcomer(journal, version="v7"), deadline_s=5.0)
    await fleet.offload(weights=V1, engines=["a"])
    await fleet.onload(engines=["a"])
    with pytest.raises(ConfigurationError, match="group default serves v0 and v1: name the newcomer's weights"):
        await fleet.adopt(newcomer(journal), deadline_s=5.0)
    assert not journal.calls("c")
    assert len(fleet) == 2


async def test_weights_that_only_the_trainer_pushes_are_waited_for_released() -> None:
    async def push(engines: Sequence[Any]) -> None:
        for each in engines:
            await each.push("tensor")

    fleet, journal = await fleet_of("a", router=True)
    async with fleet.offloaded(weights=Pushed(push, "v2")):
        pass
    engine = await fleet.adopt(newcomer(journal), deadline_s=5.0)
    assert (engine.state, engine.desired.version) == (State.RELEASED, "v2")
    assert fleet.router.closed == {"c"}
    async with fleet.offloaded(weights=Pushed(push, "v3")):
        pass
    assert {each.weights_version for each in fleet} == {"v3"}
    assert fleet.router.closed == set()


@pytest.mark.parametrize(("call", "command"), [("pause", "pause"), ("load", "update_weights")])
async def test_one_that_cannot_come_is_no_member_and_its_router_stays_closed(call: str, command: str) -> None:
    fleet, journal = await serving_v1("a")
    engine = newcomer(journal)
    engine.adapter.script(call, REJECTED)
    with pytest.raises((FleetError, OperationFailed), match=f"c: {command} failed"):
        await fleet.adopt(engine, deadline_s=5.0)
    assert states(fleet) == {"a": "serving"}
    assert fleet.router.closed == {"c"}
    async with fleet.offloaded(weights=V2):
        pass


async def test_a_newcomer_that_is_gone_or_silent_is_no_member() -> None:
    fleet, journal = await serving_v1("a")
    engine = newcomer(journal)
    engine.adapter.engine.die("it never started")
    with pytest.raises((ConfigurationError, InvalidTransition)):
        await fleet.adopt(engine, deadline_s=0.3)
    assert len(fleet) == 1


async def test_one_that_does_not_listen_yet_is_waited_for() -> None:
    fleet, journal = await serving_v1("a")
    engine, refused = newcomer(journal), [NothingListens("nothing listens there")] * 2
    connect = engine.adapter.connect

    async def starts(*, deadline_s: float) -> Any:
        if refused:
            raise refused.pop()
        return await connect(deadline_s=deadline_s)

    engine.adapter.connect = starts
    await fleet.adopt(engine, deadline_s=5.0)
    assert len(fleet) == 2
    late = newcomer(journal, "d")
    late.adapter.connect = lambda **_: _raises(NothingListens("nothing listens there"))
    with pytest.raises(NothingListens):
        await fleet.adopt(late, deadline_s=0.3)
    assert len(fleet) == 2


async def _raises(error: Exception) -> Any:
    raise error


# adopted twice


async def test_an_engine_that_is_a_member_already_is_named() -> None:
    fleet, journal = await serving_v1("a", "b")
    same = driven(fleet["b"].adapter, "other")
    with pytest.raises(ConfigurationError, match=r"other \(scripted://b\) is b of this fleet already: .*same adapter"):
        await fleet.adopt(same, deadline_s=5.0)
    with pytest.raises(ConfigurationError, match=r"the fleet has an engine b already \(scripted://b\)"):
        await fleet.adopt(newcomer(journal, "b"), deadline_s=5.0)
    alias = ScriptedAdapter("alias", journal=journal)
    alias.engine, alias.probe = fleet["b"].adapter.engine, fleet["b"].adapter.probe  # another address of one process
    with pytest.raises(ConfigurationError, match=r"b .*and alias .*are one engine: they share the boot"):
        await fleet.adopt(driven(alias, "alias"), deadline_s=5.0)
    assert (journal.calls(), len(fleet)) == ([], 2)
    assert fleet["b"].state is State.SERVING


# between moves


async def test_a_newcomer_waits_for_a_window_and_comes_with_what_it_brought() -> None:
    fleet, journal = await serving_v1("a")
    async with fleet.offloaded(weights=V2) as window:
        joining = asyncio.create_task(fleet.adopt(newcomer(journal), deadline_s=5.0))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not [entry for entry in journal if entry.engine == "c"], "it is not even asked"
        await window.restore_weights()
    assert (await joining).weights_version == "v2"


@pytest.mark.virtual_time
async def test_a_window_that_does_not_end_is_waited_for_until_the_deadline() -> None:
    fleet, journal = await serving_v1("a")
    loop = asyncio.get_running_loop()
    async with fleet.offloaded(weights=V2):
        began_s = loop.time()
        for change in (
            fleet.adopt(newcomer(journal), deadline_s=1.0),
            fleet.retire("a", deadline_s=1.0),
            fleet.replace("a", newcomer(journal), deadline_s=1.0),
        ):
            with pytest.raises(EngineBusy, match="offloaded of this fleet is under way"):
                await change
        assert 2.9 < loop.time() - began_s < 3.5
    assert states(fleet) == {"a": "serving"}


async def test_a_move_that_begins_meanwhile_waits_and_has_the_newcomer() -> None:
    fleet, journal = await serving_v1("a")
    engine, adapter_asked, go = newcomer(journal), asyncio.Event(), asyncio.Event()
    send = engine.adapter.send

    async def waits(call: Any, *, deadline_s: float) -> Any:
        adapter_asked.set()
        await go.wait()
        return await send(call, deadline_s=deadline_s)

    engine.adapter.send = waits
    joining = asyncio.create_task(fleet.adopt(engine, deadline_s=5.0))
    await adapter_asked.wait()
    journal.clear()
    with pytest.raises(EngineBusy, match=r"adopt of c is under way"):
        await fleet.pause(deadline_s=0.05)
    moving = asyncio.create_task(fleet.offload(weights=V2))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not journal.calls("a")
    go.set()
    await joining
    assert [each.engine for each in await moving] == ["a", "c"]


@pytest.mark.virtual_time
async def test_an_adoption_that_is_cancelled_leaves_the_fleet_as_it_was() -> None:
    fleet, journal = await serving_v1("a")
    engine = newcomer(journal)
    engine.adapter.script("load", HANG)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await fleet.adopt(engine, deadline_s=60.0)
    assert states(fleet) == {"a": "serving"}
    assert fleet.router.closed == {"c"}
    async with fleet.offloaded(weights=V2):
        pass
