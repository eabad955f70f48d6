"""slime's verbs where a step fails, is given up, or is gone behind their back: nothing is left half paused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from frameworks.servers import Actors, Group, cycle, push, until

from lifecycle import FleetError, FromDisk, Refuted, State
from lifecycle.testing import HANG, LOST_AFTER, QUICK, REJECTED, REJECTED_AFTER, Act

pytestmark = pytest.mark.virtual_time

V1 = FromDisk("/models/step-1", "v1")


def stubborn(actors: Actors) -> None:
    actors.made["b"].adapter.engine.stubborn = -1


def frees_nothing(actors: Actors) -> None:
    actors.made["b"].adapter.engine.frees = False


def says(call: str, act: Act) -> Callable[[Actors], None]:
    return lambda actors: actors.made["b"].adapter.script(call, act)


OFFLOAD_FAULTS = {
    "the pause is refused": (says("pause", REJECTED), "serving"),
    "the pause hangs": (says("pause", HANG), "serving"),
    "the pause answers nothing, and took effect": (says("pause", LOST_AFTER), "serving"),
    "the flush never ends": (stubborn, "serving"),
    "the release is refused": (says("release", REJECTED), "serving"),
    "the release frees nothing": (frees_nothing, "released"),
}


@pytest.mark.parametrize("fault", OFFLOAD_FAULTS)
async def test_a_failed_offload_leaves_nobody_paused(fault: str) -> None:
    """There, a flush that times out leaves the whole fleet paused: there is no finally."""
    provoke, ends = OFFLOAD_FAULTS[fault]
    actors = Actors(router=True)
    server = actors.server(Group(["a", "b"]), Group(["c"]))
    await server.engines()
    provoke(actors)
    with pytest.raises(FleetError, match=r"1 of 3 engines: b: (pause|drain|release) failed"):
        await server.offload(weights=V1, deadline_s=0.3)
    assert actors.states == {"a": "serving", "b": ends, "c": "serving"}
    assert all(engine.adapter.engine.submit() for engine in actors.made.values() if engine.state is State.SERVING)


async def test_a_release_that_answers_and_frees_nothing_has_no_result() -> None:
    """There, nothing checks that memory came back."""
    actors = Actors()
    server = actors.server(Group(["a", "b"]))
    await server.engines()
    frees_nothing(actors)
    with pytest.raises(FleetError) as failed:
        await server.offload(weights=V1, deadline_s=0.3)
    assert isinstance(failed.value.exceptions[0].verdicts["memory_returned"], Refuted)  # type: ignore[attr-defined]
    assert not any(engine.memory_is_free for engine in actors.made.values())


async def test_every_wait_ends_at_the_deadline_of_the_caller() -> None:
    """There, a hung server hangs the trainer for ever: no call has a timeout."""
    actors = Actors()
    server = actors.server(Group(["a", "b"]))
    await server.engines()
    for engine in actors.made.values():
        for call in ("pause", "resume"):
            engine.adapter.always(call, HANG)
    async with asyncio.timeout(5):
        with pytest.raises(FleetError, match="2 of 2 engines"):
            await server.offload(weights=V1, deadline_s=0.2)


@pytest.mark.parametrize("act", [REJECTED, REJECTED_AFTER, LOST_AFTER], ids=["refused", "refused late", "lost"])
async def test_weights_that_fail_to_come_back_are_asked_for_again_and_the_others_wait(act: Act) -> None:
    actors = Actors()
    server = actors.server(Group(["a", "b", "c"]))
    await server.offload()
    actors.made["b"].adapter.script("restore", act)
    with pytest.raises(FleetError, match="b: restore_weights failed") as failed:
        await server.onload_weights(deadline_s=0.5)
    assert "onload_weights() goes on with those that have none" in failed.value.__notes__[0]
    assert (actors.states["a"], actors.states["c"]) == ("weights_restored", "weights_restored")
    assert actors.states["b"] in ("released", "weights_restored")
    actors.journal.clear()
    await server.onload_weights()
    assert actors.calls("a") == actors.calls("c") == []
    async with server.updating_weights("v1") as engines:
        await push(engines)
    await server.onload_kv()
    assert actors.states == dict.fromkeys("abc", "serving")


async def test_a_kv_cache_that_fails_to_come_back_keeps_nobody_else_from_serving() -> None:
    actors = Actors(router=True)
    server = actors.server(Group(["a", "b", "c"]))
    await server.offload()
    await server.onload_weights()
    async with server.updating_weights("v1") as engines:
        await push(engines)
    actors.made["b"].adapter.script("restore", REJECTED)
    with pytest.raises(FleetError, match=r"b: restore_kv failed.*it was released again"):
        await server.onload_kv()
    assert actors.states == {"a": "serving", "b": "released", "c": "serving"}
    assert actors.made["b"].memory_is_free


async def test_an_engine_that_answers_no_token_is_closed_again_and_gets_no_requests() -> None:
    actors = Actors(router=True)
    server = actors.server(Group(["a", "b"]))
    await server.offload()
    await server.onload_weights()
    async with server.updating_weights("v1") as engines:
        await push(engines)
    actors.made["b"].adapter.always("answers", Refuted(reason="no token"))
    with pytest.raises(FleetError, match="b: resume failed"):
        await server.onload_kv(deadline_s=0.3)
    assert actors.states["a"] == "serving"
    assert actors.made["b"].facts.admission == "closed"


async def test_a_push_that_fails_fails_it_for_all_and_can_be_made_again() -> None:
    actors = Actors()
    server = actors.server(Group(["a", "b"]))
    await server.offload()
    await server.onload_weights()
    with pytest.raises(ZeroDivisionError):
        async with server.updating_weights("v1"):
            _ = 1 / 0
    assert actors.states == dict.fromkeys("ab", "weights_restored")
    with pytest.raises(FleetError, match="push them first"):
        await server.onload_kv()
    async with server.updating_weights("v1") as engines:
        await push(engines)
    await server.onload_kv()
    assert actors.states == dict.fromkeys("ab", "serving")


@pytest.mark.parametrize("call", ["pause", "release"])
async def test_an_offload_that_is_given_up_comes_back_first(call: str) -> None:
    """Ctrl-C in the trainer, at any step."""
    actors = Actors(router=True)
    server = actors.server(Group(["a", "b"]))
    await server.engines()
    for engine in actors.made.values():
        await engine.verify()
    actors.made["b"].adapter.script(call, HANG)
    task = asyncio.create_task(server.offload(weights=V1, deadline_s=2.0))
    await until(actors.journal, f"b: call {call}")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert actors.states == dict.fromkeys("ab", "serving")
    assert all(engine.adapter.engine.submit() for engine in actors.made.values())


async def test_with_the_policy_hold_who_gives_up_leaves_them_where_they_are() -> None:
    actors = Actors(policy=replace(QUICK, on_failure="hold"))
    server = actors.server(Group(["a", "b"]))
    await server.engines()
    actors.made["b"].adapter.script("release", HANG)
    task = asyncio.create_task(server.offload(weights=V1, deadline_s=2.0))
    await until(actors.journal, "b: call release")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "serving" not in actors.states.values()


async def test_with_the_policy_quarantine_the_others_go_through_the_window(caplog: pytest.LogCaptureFixture) -> None:
    actors = Actors(router=True, policy=replace(QUICK, on_failure="quarantine"))
    server = actors.server(Group(["a", "b"]))
    await server.engines()
    actors.made["b"].adapter.script("pause", REJECTED)
    actors.made["b"].adapter.always("answers", Refuted(reason="no token"))
    assert len(await server.offload(weights=V1, deadline_s=0.3)) == 1
    assert actors.made["b"].quarantined is not None
    assert len(await server.onload_weights()) == 1
    async with server.updating_weights("v1") as engines:
        assert [engine.name for engine in engines] == ["a"]
        await push(engines)
    assert len(await server.onload_kv()) == 1
    assert actors.states["a"] == "serving"
    assert "b is passed over: in quarantine" in caplog.text
    await actors.made["b"].recover()
    assert [engine.name for engine in await server.engines()] == ["a", "b"]


async def test_a_window_after_one_that_failed() -> None:
    actors = Actors()
    server = actors.server(Group(["a", "b"]))
    await server.engines()
    stubborn(actors)
    with pytest.raises(FleetError):
        await server.offload(deadline_s=0.2)
    actors.made["b"].adapter.engine.stubborn = 0
    await cycle(server)
    assert actors.states == dict.fromkeys("ab", "serving")


async def test_one_verb_at_a_time() -> None:
    actors = Actors()
    server = actors.server(Group(["a"]))
    await server.engines()
    ended: list[Any] = await asyncio.gather(server.offload(), server.offload(), return_exceptions=True)
    assert [type(each).__name__ for each in ended] == ["list", "EngineBusy"]
