"""Engines of a rollout server that are gone or in quarantine, and that somebody starts again behind its back."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest
from frameworks.servers import Actors, Group, push

from lifecycle import FleetError, FromDisk
from lifecycle.core.errors import NothingListens
from lifecycle.engine import attach
from lifecycle.frameworks.server import AsyncRolloutServer
from lifecycle.frameworks.slots import SlotMembers
from lifecycle.testing import DIE, HANG, QUICK

pytestmark = pytest.mark.virtual_time

V1 = FromDisk("/models/step-1", "v1")
QUARANTINE = replace(QUICK, on_failure="quarantine")

over = pytest.mark.parametrize("over", ["slots", "fleet"])


async def server_of(actors: Actors, over: str) -> AsyncRolloutServer:
    """A server of a and b, which are connected: over slots, or over a fleet."""
    server = actors.server(Group(["a", "b"])) if over == "slots" else await actors.over_a_fleet("a", "b")
    await server.engines()
    return server


async def b_is_gone(actors: Actors) -> None:
    actors.made["b"].adapter.engine.die("killed")
    await actors.made["b"].verify()
    assert actors.states["b"] == "gone"


async def went_on_without_b(actors: Actors, server: AsyncRolloutServer) -> None:
    """The process of b ended in an offload, which went on without it; the others serve again."""
    actors.made["b"].adapter.script("pause", DIE)
    assert len(await server.offload(weights=V1)) == 1
    await server.onload()
    assert actors.states == {"a": "serving", "b": "gone"}
    assert actors.made["b"].quarantined is not None
    actors.journal.clear()


@over
async def test_one_that_was_started_again_is_released_with_the_others(
    over: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody would look at it otherwise, and the trainer would run out of memory beside it."""
    actors = Actors(device="gpu-0")
    server = await server_of(actors, over)
    await b_is_gone(actors)
    actors.made["b"].adapter.engine.restart()
    with caplog.at_level(logging.WARNING):
        assert len(await server.offload(weights=V1)) == 2
    assert actors.states == dict.fromkeys("ab", "released")
    assert actors.made["b"].memory_is_free
    assert "b was gone, and takes part again" in caplog.text


@over
async def test_one_that_is_gone_still_is_passed_over(over: str) -> None:
    actors = Actors(device="gpu-0")
    server = await server_of(actors, over)
    await b_is_gone(actors)
    assert len(await server.offload(weights=V1)) == 1
    await server.onload()
    assert actors.states == {"a": "serving", "b": "gone"}


@over
async def test_where_all_are_gone_nothing_is_done(over: str) -> None:
    actors = Actors()
    server = await server_of(actors, over)
    for engine in actors.made.values():
        engine.adapter.engine.die("killed")
        await engine.verify()
    actors.journal.clear()
    assert [await server.offload(), await server.onload_weights(), await server.onload_kv()] == [[], [], []]
    assert await server.recover() == []
    assert actors.calls() == []


@over
async def test_beside_one_in_quarantine_that_was_started_again_nobody_is_offloaded(over: str) -> None:
    actors = Actors(device="gpu-0", router=True, policy=QUARANTINE)
    server = await server_of(actors, over)
    await went_on_without_b(actors, server)
    assert len(await server.offload(weights=V1)) == 1, "it is gone still"
    await server.onload()
    actors.journal.clear()
    actors.made["b"].adapter.engine.restart()
    with pytest.raises(FleetError, match=r"refused before anything was sent.*b: .*in quarantine.*recover it first"):
        await server.offload(weights=V1)
    assert actors.calls("a") == []
    assert actors.states["a"] == "serving"
    fleet = await server.fleet()
    assert list(await fleet.recover()) == ["b"]
    assert len(await server.offload(weights=V1)) == 2


async def test_one_in_quarantine_on_a_device_of_its_own_hinders_nobody() -> None:
    actors = Actors(router=True, policy=QUARANTINE)
    server = await server_of(actors, "slots")
    await went_on_without_b(actors, server)
    actors.made["b"].adapter.engine.restart()
    assert len(await server.offload(weights=V1)) == 1
    assert actors.states["a"] == "released"


async def test_where_the_last_that_lives_is_in_quarantine_no_offload_returns_well() -> None:
    actors = Actors(device="gpu-0", router=True, policy=QUARANTINE)
    server = await server_of(actors, "slots")
    await went_on_without_b(actors, server)
    actors.made["b"].adapter.engine.restart()
    actors.made["a"].adapter.engine.die("killed")
    await actors.made["a"].verify()
    with pytest.raises(FleetError, match=r"b: .*in quarantine.*recover\(\) takes it back"):
        await server.offload(weights=V1)
    assert await server.onload_weights() == await server.onload_kv() == []


async def test_one_in_quarantine_is_to_serve_what_the_others_serve_meanwhile() -> None:
    actors = Actors(router=True, policy=QUARANTINE)
    server = await server_of(actors, "slots")
    await went_on_without_b(actors, server)
    await server.offload()
    await server.onload_weights()
    async with server.updating_weights("v2") as engines:
        await push(engines)
    await server.onload_kv()
    assert actors.made["b"].desired.version == "v2"


async def test_recover_brings_one_that_was_started_again_to_where_the_others_wait() -> None:
    actors = Actors()
    server = actors.server(Group(["a", "b"]), by="trainer")
    await server.offload()
    await server.onload_weights()
    await b_is_gone(actors)
    assert await server.recover() == []
    actors.made["b"].adapter.engine.restart()
    assert len(await server.recover()) == 1
    assert actors.states == dict.fromkeys("ab", "weights_restored")
    async with server.updating_weights("v1") as engines:
        await push(engines)
    await server.onload_kv()
    assert actors.states == dict.fromkeys("ab", "serving")


async def test_one_that_hangs_is_waited_for_until_the_deadline_of_the_caller() -> None:
    """Whether it holds memory cannot be told then, so that the offload is refused."""
    actors = Actors()
    server = await server_of(actors, "slots")
    await b_is_gone(actors)
    actors.made["b"].adapter.engine.restart()
    actors.made["b"].adapter.always("observe", HANG)
    async with asyncio.timeout(2):
        with pytest.raises(FleetError, match=r"b: .*recover"):
            await server.offload(weights=V1, deadline_s=0.3)
    assert actors.calls() == []


async def test_one_engine_is_released_that_was_started_again() -> None:
    actors = Actors()
    server = await server_of(actors, "slots")
    await b_is_gone(actors)
    with pytest.raises(KeyError, match="no engine 'b'; there are a"):
        await server.release("b", weights=V1)
    actors.made["b"].adapter.engine.restart()
    await server.release("b", weights=V1)
    assert actors.states == {"a": "serving", "b": "released"}


async def test_one_that_was_gone_before_it_could_be_asked_is_connected_once_it_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A store has its processes, and they had ended when this driver began."""

    async def ended(*_: object) -> bool:
        return True

    monkeypatch.setattr(attach, "have_ended", ended)
    actors = Actors()
    a, b = actors.engine_of("a"), actors.engine_of("b")
    b.adapter.engine.die("killed")
    connect = b.adapter.connect

    async def refused(**options: Any) -> Any:
        if not b.adapter.engine.alive:
            raise NothingListens("nothing listens there")
        return await connect(**options)

    monkeypatch.setattr(b.adapter, "connect", refused)
    server = AsyncRolloutServer(SlotMembers([Group([a, b])], lambda engine: engine))
    assert len(await server.offload(weights=V1)) == 1
    await server.onload()
    assert not b.connected
    b.adapter.engine.restart()
    assert len(await server.offload(weights=V1)) == 2
