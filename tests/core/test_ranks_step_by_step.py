"""The steps of a fleet with ranks: each is voted on before anything is sent, and after it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from rank_rig import LIMIT_S, WORLD, causes, journal_of, offload, on_all, onload, ranks, states_of
from rig import V1, V2, sent

from lifecycle import FleetError, Group, Preempted, RankFailed, RankMissing, State
from lifecycle.testing import REJECTED, ScriptedRouter

pytestmark = pytest.mark.virtual_time

RING: list[tuple[str, Any, State]] = [
    ("pause", lambda fleet: fleet.pause(deadline_s=LIMIT_S), State.PAUSED),
    ("drain", lambda fleet: fleet.drain(deadline_s=LIMIT_S), State.DRAINED),
    ("release", lambda fleet: fleet.release(weights=V1, deadline_s=LIMIT_S), State.RELEASED),
    ("restore", lambda fleet: fleet.restore_weights(deadline_s=LIMIT_S), State.WEIGHTS_RESTORED),
    ("load", lambda fleet: fleet.update_weights(V1, deadline_s=LIMIT_S), State.WEIGHTS_RESTORED),
    ("flush", lambda fleet: fleet.restore_kv(deadline_s=LIMIT_S), State.KV_RESTORED),
    ("resume", lambda fleet: fleet.resume(deadline_s=LIMIT_S), State.SERVING),
]


async def test_the_ring_step_by_step() -> None:
    fleets = await ranks(groups={"a": Group(), "b": Group(drain_after=("a",))})
    for _, step, state in RING:
        done = await on_all(fleets, step)
        assert states_of(fleets) == [state] * WORLD, done
        assert all(isinstance(each, list) for each in done)


@pytest.mark.parametrize("failing", [call for call, _, _ in RING if call != "drain"])
async def test_a_step_that_fails_on_one_rank_fails_on_all(failing: str) -> None:
    fleets = await ranks()
    number = [call for call, _, _ in RING].index(failing)
    for _, step, _ in RING[:number]:
        await on_all(fleets, step)
    fleets[1]["e1"].adapter.always(failing, REJECTED)
    _, step, state = RING[number]
    done = await on_all(fleets, step)
    for rank in (0, 2):
        (cause,) = causes(done[rank])
        assert isinstance(cause, RankFailed)
        assert cause.rank == 1
        assert [each.engine for each in done[rank].succeeded] == [f"e{rank}"]
    assert causes(done[1])
    assert states_of(fleets)[::2] == [state] * 2, "a step brings nobody back"


async def test_a_refusal_before_the_step_sends_nothing_on_any() -> None:
    fleets = await ranks()
    await fleets_paused(fleets[:2])
    refused = await on_all(fleets, lambda fleet: fleet.release(weights=V1, deadline_s=LIMIT_S))
    assert all(isinstance(each, FleetError) for each in refused)
    assert "release" not in [call for fleet in fleets for engine in fleet for call in sent(engine)]


async def fleets_paused(fleets: Any) -> None:
    for fleet in fleets:
        with fleet.ranks.alone():
            await fleet.pause()
            await fleet.drain()


async def test_a_rank_that_does_not_make_the_step_is_missing() -> None:
    fleets = await ranks()
    begun = time.monotonic()
    failed = await on_all(fleets[1:], RING[0][1])
    assert time.monotonic() - begun < LIMIT_S + 0.01
    assert [type(causes(each)[0]) for each in failed] == [RankMissing] * 2
    assert states_of(fleets) == [State.SERVING] * WORLD


async def test_versions_that_differ_are_refused() -> None:
    fleets = await ranks()
    for _, step, _ in RING[:4]:
        await on_all(fleets, step)
    source = {id(fleet): V2 if fleet is fleets[0] else V1 for fleet in fleets}
    refused = await on_all(fleets, lambda fleet: fleet.update_weights(source[id(fleet)], deadline_s=LIMIT_S))
    assert "the version of default is v1 there, and v2 here" in str(refused[0])
    assert "load" not in [call for fleet in fleets for engine in fleet for call in sent(engine)]


async def test_a_push_is_one_window_on_all_ranks() -> None:
    fleets = await ranks()
    await on_all(fleets, offload)
    await on_all(fleets, RING[3][1])
    inside: list[int] = []

    async def push(fleet: Any) -> None:
        async with fleet.updating_weights("v5", deadline_s=LIMIT_S) as engines:
            inside.append(len(engines))
            await asyncio.gather(*(engine.push("tensor", data=1) for engine in engines))

    assert await on_all(fleets, push) == [None] * WORLD
    assert inside == [1] * WORLD
    await on_all(fleets, onload)
    assert states_of(fleets) == [State.SERVING] * WORLD


async def test_a_push_that_fails_on_one_rank_fails_on_all() -> None:
    fleets = await ranks()
    await on_all(fleets, offload)
    await on_all(fleets, RING[3][1])

    async def push(fleet: Any) -> None:
        async with fleet.updating_weights("v5", deadline_s=LIMIT_S) as engines:
            if fleet is fleets[1]:
                raise ZeroDivisionError("no route")
            await asyncio.gather(*(engine.push("tensor", data=1) for engine in engines))

    failed = await on_all(fleets, push)
    assert isinstance(failed[1], ZeroDivisionError)
    assert [type(causes(failed[rank])[0]) for rank in (0, 2)] == [RankFailed] * 2


async def test_a_rank_without_engines_in_a_step_votes_too() -> None:
    fleets = await ranks()
    (idle,) = await ranks(1, groups={"default": Group(offload=False)}, offload=False)
    idle.ranks._agreement = fleets[2].ranks._agreement
    for _, step, state in RING[:3]:
        done = await on_all([*fleets[:2], idle], step)
        assert [len(each) for each in done] == [1, 1, 0]
        assert states_of(fleets[:2]) == [state] * 2


@pytest.mark.parametrize("step", ["pause", "resume"])
async def test_a_router_is_not_touched_by_a_step_that_is_refused(step: str) -> None:
    fleets = await ranks(has_router=True)
    for fleet in fleets:
        fleet.router = ScriptedRouter(journal_of(fleets))
    failed = await on_all(fleets[1:], lambda fleet: getattr(fleet, step)(deadline_s=LIMIT_S))
    assert [type(causes(each)[0]) for each in failed] == [RankMissing] * 2
    assert [entry.engine for entry in journal_of(fleets) if entry.kind == "router"] == []
    assert await on_all(fleets, RING[0][1]) != []
    assert states_of(fleets) == [State.PAUSED] * WORLD
    assert fleets[1].router.closed == {"e1"}


async def test_a_drain_is_given_up_for_a_resume_once_all_ranks_are_ready_for_it() -> None:
    fleets = await ranks(2)
    await on_all(fleets, RING[0][1])
    fleets[0]["e0"].adapter.engine.stubborn = -1
    drain = asyncio.create_task(fleets[0]["e0"].drain(deadline_s=60.0))
    await asyncio.sleep(0.01)
    (failed,) = await on_all(fleets[:1], lambda fleet: fleet.resume(preempt=True, deadline_s=LIMIT_S))
    assert [type(each) for each in causes(failed)] == [RankMissing]
    assert not drain.done()
    await on_all(fleets, lambda fleet: fleet.resume(preempt=True, deadline_s=LIMIT_S))
    assert states_of(fleets) == [State.SERVING] * 2
    with pytest.raises(Preempted):
        await drain
