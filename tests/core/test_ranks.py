"""One driver a rank: a refusal or a failure of one is everybody's, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from rank_rig import LIMIT_S, WORLD, causes, journal_of, offload, on_all, onload, ranks, states_of
from rig import V1, V2, sent

from lifecycle import (
    ConfigurationError,
    Group,
    InvalidTransition,
    Kept,
    Policy,
    RankFailed,
    RankMissing,
    Rejected,
    State,
)
from lifecycle.core.errors import PlansDiffer
from lifecycle.testing import HANG, REJECTED
from lifecycle.testing import QUICK as PLAIN

pytestmark = pytest.mark.virtual_time

HOLD = Policy(settle_s=0.05, poll_s=0.001, on_failure="hold")
#: The call by which each phase of a move fails on one rank.
OF_OFFLOAD = {"pause": "pause", "release": "release"}
OF_ONLOAD = {"restore_weights": "restore", "update_weights": "load", "restore_kv": "flush", "resume": "resume"}


async def test_all_ranks_enter_a_phase_once_all_have_ended_the_one_before() -> None:
    fleets = await ranks()
    done = await on_all(fleets, offload)
    assert states_of(fleets) == [State.RELEASED] * WORLD, done
    await on_all(fleets, onload)
    assert states_of(fleets) == [State.SERVING] * WORLD
    calls = [entry.name for entry in journal_of(fleets) if entry.kind == "call"]
    for first, then in [("pause", "release"), ("release", "restore"), ("load", "flush"), ("flush", "resume")]:
        last = max(number for number, call in enumerate(calls) if call == first)
        assert last < calls.index(then) or (first, then) == ("release", "restore"), (first, then, calls)


@pytest.mark.parametrize("policy", [PLAIN, HOLD], ids=["restore", "hold"])
@pytest.mark.parametrize("phase", OF_OFFLOAD)
async def test_a_failure_of_an_offload_is_that_of_all(phase: str, policy: Policy) -> None:
    fleets = await ranks(policy=policy)
    fleets[1]["e1"].adapter.script(OF_OFFLOAD[phase], REJECTED)
    failed = await on_all(fleets, offload)
    for rank in (0, 2):
        (cause,) = causes(failed[rank])
        assert isinstance(cause, RankFailed)
        assert (cause.rank, cause.phase) == (1, f"offload: {phase}")
        assert "e1" in cause.why
    assert isinstance(causes(failed[1])[0], Rejected)
    if policy is PLAIN:
        assert states_of(fleets) == [State.SERVING] * WORLD
    else:
        assert State.SERVING not in states_of(fleets)[::2]
    calls = [entry.name for entry in journal_of(fleets) if entry.kind == "call" and entry.engine != "e1"]
    assert ("release" in calls) is (phase == "release"), "a later phase was not entered"


async def test_a_drain_that_takes_too_long_is_that_of_all() -> None:
    fleets = await ranks()
    fleets[2]["e2"].adapter.engine.stubborn = -1
    begun = time.monotonic()
    failed = await on_all(fleets, offload)
    assert time.monotonic() - begun < 2 * LIMIT_S, "one deadline for the drain, and what the others need to come back"
    for cause in (causes(each)[0] for each in failed[:2]):
        assert isinstance(cause, RankFailed), "it says why, in time"
        assert cause.phase == "offload: drain"
    assert states_of(fleets)[:2] == [State.SERVING] * 2


async def test_a_rank_that_needs_all_of_its_time_still_says_why_it_failed() -> None:
    fleets = await ranks()
    for name in ("release", "barrier"):  # what happened is asked for until the last moment
        fleets[1]["e1"].adapter.always(name, HANG)
    begun = time.monotonic()
    *failed, own = await on_all([fleets[0], fleets[2], fleets[1]], offload)
    assert time.monotonic() - begun < 2 * LIMIT_S + 0.1
    assert causes(own)[0].deadline_s <= 0.75 * LIMIT_S, "a part of it is left for the vote"  # type: ignore[attr-defined]
    for outcome in failed:
        (cause,) = causes(outcome)
        assert isinstance(cause, RankFailed)
        assert "not answered in time" in cause.why


@pytest.mark.parametrize("phase", OF_ONLOAD)
async def test_a_failure_of_an_onload_is_told_to_all_and_the_others_serve(phase: str) -> None:
    fleets = await ranks()
    await on_all(fleets, offload)
    fleets[1]["e1"].adapter.always(OF_ONLOAD[phase], REJECTED)
    failed = await on_all(fleets, onload)
    for rank in (0, 2):
        (cause,) = causes(failed[rank])
        assert isinstance(cause, RankFailed)
        assert (cause.rank, cause.phase) == (1, f"onload: {phase}")
    assert states_of(fleets)[::2] == [State.SERVING] * 2
    assert fleets[1]["e1"].state is not State.SERVING


async def test_a_refused_offload_of_one_rank_sends_nothing_on_any() -> None:
    fleets = await ranks()
    fleets[1]["e1"]._session.go("contradicted", reason="a test")
    refused = await on_all(fleets, offload)
    assert [sent(engine) for fleet in fleets for engine in fleet] == [[]] * WORLD
    assert states_of(fleets)[::2] == [State.SERVING] * 2
    for rank in (0, 2):
        (cause,) = causes(refused[rank])
        assert isinstance(cause, RankFailed)
        assert (cause.rank, cause.phase, cause.gave_up) == (1, "offload: begin", False)
        assert "e1: a move to released refused in state failed" in cause.why
    assert isinstance(causes(refused[1])[0], InvalidTransition)


async def test_a_refused_onload_of_one_rank_sends_nothing_on_any() -> None:
    fleets = await ranks()
    await on_all(fleets, offload)
    journal_of(fleets).clear()

    async def move(fleet: Any) -> Any:
        return await fleet.onload(weights=Kept() if fleet is fleets[1] else None, deadline_s=LIMIT_S)

    refused = await on_all(fleets, move)
    assert [sent(engine) for fleet in fleets for engine in fleet] == [[]] * WORLD
    assert states_of(fleets) == [State.RELEASED] * WORLD
    for rank in (0, 2):
        (cause,) = causes(refused[rank])
        assert isinstance(cause, RankFailed)
        assert "has not kept them" in cause.why
    await on_all(fleets, onload)
    assert states_of(fleets) == [State.SERVING] * WORLD, "they are in step"


async def test_an_onload_goes_on_without_a_rank_that_does_not_come() -> None:
    fleets = await ranks()
    await on_all(fleets, offload)
    failed = await on_all(fleets[:2], onload)
    assert [type(causes(each)[0]) for each in failed] == [RankMissing] * 2
    assert states_of(fleets) == [State.SERVING, State.SERVING, State.RELEASED]


async def test_a_rank_that_does_not_come_is_named_and_nothing_is_sent() -> None:
    fleets = await ranks()
    begun = time.monotonic()
    failed = await on_all(fleets[:2], offload)
    assert time.monotonic() - begun < LIMIT_S + 0.01
    assert [type(causes(each)[0]) for each in failed] == [RankMissing] * 2
    assert "rank 2: it did not vote in time on offload: begin" in str(failed[0])
    assert states_of(fleets) == [State.SERVING] * WORLD
    assert [sent(engine) for fleet in fleets for engine in fleet] == [[]] * WORLD


async def test_a_rank_that_comes_too_late_joins_the_others_where_they_are() -> None:
    fleets = await ranks()
    await on_all(fleets[:2], offload)
    await on_all(fleets[:2], offload)  # and again, so that it is two barriers behind
    assert states_of(fleets) == [State.SERVING] * WORLD
    done = await on_all(fleets, offload)
    assert states_of(fleets) == [State.RELEASED] * WORLD, done


async def test_a_rank_that_votes_too_late_on_a_phase_is_told_so() -> None:
    fleets = await ranks()
    agreement: Any = fleets[2].ranks._agreement
    vote = agreement.agree

    async def slow(phase: str, outcome: Any, *, deadline_s: float) -> Any:
        if phase == "offload: drain":
            await asyncio.sleep(2 * LIMIT_S)
        return await vote(phase, outcome, deadline_s=deadline_s)

    agreement.agree = slow
    failed = await on_all(fleets, offload)
    (late,) = causes(failed[2])
    assert isinstance(late, RankMissing)
    assert (late.late, late.rank, late.phase) == (True, 2, "offload: drain")
    assert "decided on offload: drain without this rank" in str(failed[2])
    assert states_of(fleets) == [State.SERVING] * WORLD
    await on_all(fleets, offload)
    agreement.agree = vote
    await on_all(fleets, offload)
    assert states_of(fleets) == [State.RELEASED] * WORLD


async def test_a_rank_that_is_killed_in_a_phase_is_missing_at_its_barrier() -> None:
    fleets = await ranks()
    held = asyncio.Event()

    async def dies(fleet: Any) -> Any:
        agreement = fleet.ranks._agreement
        fleet["e1"].adapter.script("release", HANG)
        agreement.give_up = lambda *_, **__: held.wait()  # it says nothing of its end
        move = asyncio.create_task(offload(fleet))
        async with asyncio.timeout(LIMIT_S):
            while fleet["e1"].state is not State.RELEASING:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        move.cancel()
        return await asyncio.gather(move, return_exceptions=True)

    begun = time.monotonic()
    failed, _, again = await asyncio.gather(on_all(fleets[:1], offload), dies(fleets[1]), on_all(fleets[2:], offload))
    assert time.monotonic() - begun < 2 * LIMIT_S + 1
    for outcome in (*failed, *again):
        (cause,) = causes(outcome)
        assert isinstance(cause, RankMissing)
        assert (cause.rank, cause.phase) == (1, "offload: release")
    assert states_of(fleets)[::2] == [State.SERVING] * 2


@pytest.mark.parametrize("call", ["pause", "release"])
async def test_a_rank_that_is_cancelled_says_so_and_nobody_waits_for_it(call: str) -> None:
    fleets = await ranks()
    fleets[1]["e1"].adapter.script(call, HANG)

    async def given_up(fleet: Any) -> Any:
        async with asyncio.timeout(0.1):
            await fleet.offload(weights=V1, deadline_s=60)

    begun = time.monotonic()
    moves = [fleets[rank].offload(weights=V1, deadline_s=60) for rank in (0, 2)]
    first, cancelled, last = await asyncio.gather(moves[0], given_up(fleets[1]), moves[1], return_exceptions=True)
    assert time.monotonic() - begun < 5
    assert isinstance(cancelled, TimeoutError)
    for outcome in (first, last):
        (cause,) = causes(outcome)
        assert isinstance(cause, RankFailed)
        assert cause.gave_up
        assert "cancelled" in cause.why
    assert states_of(fleets)[::2] == [State.SERVING] * 2


async def test_a_vote_is_taken_back_where_nothing_was_decided_yet() -> None:
    fleets = await ranks()

    async def given_up(fleet: Any) -> Any:
        async with asyncio.timeout(0.1):
            await offload(fleet)

    await asyncio.gather(given_up(fleets[1]), return_exceptions=True)  # it voted, and waited for the others
    failed = await on_all([fleets[0], fleets[2]], offload)
    for outcome in failed:
        (cause,) = causes(outcome)
        assert isinstance(cause, RankFailed)
        assert cause.gave_up
    assert states_of(fleets) == [State.SERVING] * WORLD
    assert states_of(fleets) == [State.SERVING] * WORLD
    await on_all(fleets, offload)
    assert states_of(fleets) == [State.RELEASED] * WORLD


async def test_a_window_left_by_an_error_on_one_rank_is_left_by_all_serving() -> None:
    fleets = await ranks()

    async def step(fleet: Any) -> None:
        async with fleet.offloaded(weights=V1, deadline_s=LIMIT_S):
            if fleet is fleets[1]:
                raise ZeroDivisionError("the loss")

    begun = time.monotonic()
    failed = await on_all(fleets, step)
    assert time.monotonic() - begun < LIMIT_S, "nobody waited for the rank that left"
    assert isinstance(failed[1], ZeroDivisionError)
    assert getattr(failed[1], "__notes__", []) == []
    for rank in (0, 2):
        (cause,) = causes(failed[rank])
        assert isinstance(cause, RankFailed)
        assert "ZeroDivisionError: the loss" in cause.why
    assert states_of(fleets) == [State.SERVING] * WORLD
    assert await on_all(fleets, step) != []
    await on_all(fleets, offload)
    assert states_of(fleets) == [State.RELEASED] * WORLD, "they are in step"


@pytest.mark.parametrize(
    ("mine", "theirs", "differs"),
    [
        ({"tags": ["kv_cache"]}, {}, "the tags of default is all there, and kv_cache here"),
        ({"weights": V2}, {}, "the version of default is v1 there, and v2 here"),
        ({"mode": "keep"}, {}, "the pause mode of default is abort there, and keep here"),
    ],
)
async def test_plans_that_differ_are_refused(mine: Any, theirs: Any, differs: str) -> None:
    fleets = await ranks()
    plans = [{"weights": V1, "deadline_s": LIMIT_S} | plan for plan in (mine, theirs, theirs)]
    moves = [fleet.offload(**plan) for fleet, plan in zip(fleets, plans, strict=True)]
    refused = await asyncio.gather(*moves, return_exceptions=True)
    assert all(isinstance(each, PlansDiffer) for each in causes(refused[0]))
    assert differs in str(refused[0])
    assert "make the same calls with the same arguments on all ranks" in str(refused[0])
    assert [each.rank for each in causes(refused[1])] == [0]
    assert [sent(engine) for fleet in fleets for engine in fleet] == [[]] * WORLD


async def test_onloads_that_differ_are_refused() -> None:
    fleets = await ranks()
    await on_all(fleets, offload)
    refused = await on_all(fleets, lambda fleet: fleet.onload(overlap=fleet is fleets[0], deadline_s=LIMIT_S))
    assert "overlap= is False there, and True here" in str(refused[0])
    assert states_of(fleets) == [State.RELEASED] * WORLD


async def test_another_verb_on_one_rank_is_refused() -> None:
    fleets = await ranks()

    async def move(fleet: Any) -> Any:
        return await (fleet.pause(deadline_s=LIMIT_S) if fleet is fleets[0] else offload(fleet))

    refused = await on_all(fleets, move)
    assert "it is at `offload: begin`, and this rank at `pause: begin`" in str(refused[0])
    assert states_of(fleets) == [State.SERVING] * WORLD


async def test_a_rank_without_engines_in_the_move_votes_too() -> None:
    fleets = await ranks()
    idle = await ranks(1, groups={"default": Group(offload=False)}, offload=False)
    for engine in idle[0]:
        assert not engine.offloads
    idle[0].ranks._agreement = fleets[2].ranks._agreement
    these = [*fleets[:2], idle[0]]
    assert all(isinstance(each, list) for each in await on_all(these, offload))
    assert all(isinstance(each, list) for each in await on_all(these, onload))
    assert states_of(these) == [State.SERVING] * WORLD


async def test_one_verb_at_a_time() -> None:
    fleets = await ranks()
    first = asyncio.create_task(offload(fleets[0]))
    await asyncio.sleep(0)
    with pytest.raises(ConfigurationError, match="pause while offload is under way"):
        await fleets[0].pause()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_a_step_between_that_fails_on_one_rank_stops_all_where_they_are() -> None:
    fleets = await ranks()
    await on_all(fleets, offload)

    async def move(fleet: Any) -> Any:
        def between() -> None:
            if fleet is fleets[1]:
                raise ZeroDivisionError("no memory")

        return await fleet.onload(between=between, deadline_s=LIMIT_S)

    failed = await on_all(fleets, move)
    assert isinstance(failed[1], ZeroDivisionError)
    assert "no memory" in str(failed[0])
    assert states_of(fleets) == [State.WEIGHTS_RESTORED] * WORLD
    await on_all(fleets, onload)
    assert states_of(fleets) == [State.SERVING] * WORLD


async def test_a_recovery_asks_no_other_rank() -> None:
    fleets = await ranks()
    engine = fleets[1]["e1"]
    engine._session.go("contradicted", reason="a test")
    begun = time.monotonic()
    await fleets[1].recover(to="serving", deadline_s=LIMIT_S)
    await fleets[1].recover(to="released", weights=V1, deadline_s=LIMIT_S)
    assert engine.state is State.RELEASED
    assert time.monotonic() - begun < LIMIT_S
    assert [fleet.ranks._agreement.phases for fleet in fleets] == [[]] * WORLD  # type: ignore[union-attr]


async def test_what_engines_of_one_group_differ_in_is_no_plan_of_the_ranks() -> None:
    fleets = await ranks(2, names=("a", "b", "c"))
    for fleet, sources in zip(fleets, [(V1, V2, V1), (V2, V1, V2)], strict=True):
        with fleet.ranks.alone():
            for engine, source in zip(fleet, sources, strict=True):
                await fleet.offload(weights=source, engines=[engine])
    done = await on_all(fleets, onload)
    assert states_of(fleets) == [State.SERVING] * 6, done
    assert [engine.weights_version for fleet in fleets for engine in fleet] == ["v1", "v2", "v1", "v2", "v1", "v2"]
