"""Ranks in windows with steps, plans by group, and the verbs that a fleet with an agreement refuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from rank_rig import LIMIT_S, causes, offload, on_all, onload, ranks, states_of
from rig import V1, V2, sent

from lifecycle import ConfigurationError, Fleet, FleetError, Group, GroupPlan, Pushed, RankFailed, State, Window
from lifecycle.core.errors import PlansDiffer
from lifecycle.testing import HANG, REJECTED

pytestmark = pytest.mark.virtual_time


async def no_push(parties: Any) -> None:
    raise NotImplementedError


PUSHED = Pushed(no_push, "v1")


async def of_two(**how: Any) -> list[Fleet]:
    """Two ranks that serve v1, loaded from disk."""
    fleets = await ranks(2, **how)
    await on_all(fleets, offload)
    done = await on_all(fleets, onload)
    assert states_of(fleets) == [State.SERVING] * 2, done
    return fleets


async def in_windows(fleets: list[Fleet], body: Callable[[Fleet, Window], Awaitable[object]]) -> list[Any]:
    """What became of this body in a window of each rank, to come back with v2; it took no deadline to say so."""

    async def step(fleet: Fleet) -> None:
        async with fleet.offloaded(weights=V2, deadline_s=LIMIT_S) as window:
            await body(fleet, window)

    begun = time.monotonic()
    outcomes = await on_all(fleets, step)
    assert time.monotonic() - begun < LIMIT_S, "nobody waited for a rank that had left"
    return outcomes


def versions(fleets: list[Fleet]) -> list[str | None]:
    return [engine.weights_version for fleet in fleets for engine in fleet]


async def are_in_step(fleets: list[Fleet], *, passed_over: int = 0) -> None:
    """The next move of all ranks goes through; so many votes of their window were left at barriers to come."""
    for move, state in ((offload, State.RELEASED), (onload, State.SERVING)):
        begun = [begins(fleet) for fleet in fleets]
        done = await on_all(fleets, move)
        assert states_of(fleets) == [state] * 2, done
        assert all(isinstance(each, list) for each in done)
        votes = [now - before for now, before in zip(map(begins, fleets), begun, strict=True)]
        assert max(votes) == 1 + passed_over
        passed_over = 0


def begins(fleet: Fleet) -> int:
    """How often this rank voted on a beginning."""
    phases: list[str] = fleet.ranks._agreement.phases  # type: ignore[union-attr]
    return sum(phase.endswith(": begin") for phase in phases)


async def test_each_step_of_a_window_is_voted_on_and_ends_where_it_says_on_all_ranks() -> None:
    fleets, seen = await of_two(), list[Any]()

    async def body(fleet: Fleet, window: Window) -> None:
        await window.restore_weights(deadline_s=LIMIT_S)
        seen.append(states_of([fleet]))
        await window.update_weights()
        seen.append(window.versions)
        await window.restore_kv()
        seen.append(states_of([fleet]))

    assert await in_windows(fleets, body) == [None, None]
    assert sorted(map(str, seen)) == sorted(
        map(str, [[State.WEIGHTS_RESTORED]] * 2 + [{"e0": "v2"}, {"e1": "v2"}] + [[State.KV_RESTORED]] * 2)
    )
    assert (states_of(fleets), versions(fleets)) == ([State.SERVING] * 2, ["v2"] * 2)
    first, second = (fleet.ranks._agreement.phases for fleet in fleets)  # type: ignore[union-attr]
    assert first == second
    assert [each for each in first if each.startswith("window.update")] == [
        f"window.update_weights: {phase}" for phase in ("begin", "pause", "drain", "restore_weights", "update_weights")
    ]


async def test_a_step_of_a_window_that_fails_on_one_rank_fails_on_all_and_all_come_home() -> None:
    fleets = await of_two()

    async def body(fleet: Fleet, window: Window) -> None:
        if fleet is fleets[1]:
            fleet["e1"].adapter.script("load", REJECTED)
        await window.update_weights()

    failed = await in_windows(fleets, body)
    (cause,) = causes(failed[0])
    assert isinstance(cause, RankFailed)
    assert (cause.rank, cause.phase) == (1, "window.update_weights: update_weights")
    assert "e1" in cause.why
    assert [getattr(each, "engine", None) for each in causes(failed[1])] == ["e1"]
    assert states_of(fleets) == [State.SERVING] * 2
    await are_in_step(fleets)


async def test_a_step_of_a_window_that_failed_can_be_asked_for_again_by_all() -> None:
    fleets = await of_two()

    async def body(fleet: Fleet, window: Window) -> None:
        if fleet is fleets[1]:
            fleet["e1"].adapter.script("load", REJECTED)
        with pytest.raises(FleetError):
            await window.update_weights()
        await window.update_weights()

    assert await in_windows(fleets, body) == [None, None]
    assert (states_of(fleets), versions(fleets)) == ([State.SERVING] * 2, ["v2"] * 2)
    await are_in_step(fleets)


async def test_a_push_that_is_given_up_in_the_window_of_one_rank_fails_on_all() -> None:
    fleets = await of_two()

    async def body(fleet: Fleet, window: Window) -> None:
        async with window.updating_weights("v9") as engines:
            if fleet is fleets[1]:
                raise ZeroDivisionError("no route")
            await asyncio.gather(*(engine.push("tensor", data=1) for engine in engines))

    failed = await in_windows(fleets, body)
    assert isinstance(failed[1], ZeroDivisionError)
    assert [type(each) for each in causes(failed[0])] == [RankFailed]
    assert states_of(fleets) == [State.SERVING] * 2
    await are_in_step(fleets, passed_over=1)  # it left by an error of its own, when all knew that the step had failed


async def test_a_step_of_a_window_that_one_rank_refuses_is_sent_nowhere() -> None:
    fleets = await of_two()

    async def body(fleet: Fleet, window: Window) -> None:
        before = {engine.name: sent(engine) for engine in fleet}
        try:
            await window.update_weights({"elsewhere": V2} if fleet is fleets[1] else V2)
        finally:
            assert {engine.name: sent(engine) for engine in fleet} == before

    failed = await in_windows(fleets, body)
    assert isinstance(failed[1], ConfigurationError)
    (cause,) = causes(failed[0])
    assert isinstance(cause, RankFailed)
    assert "elsewhere" in cause.why
    assert states_of(fleets) == [State.SERVING] * 2
    await are_in_step(fleets)


async def test_no_step_of_a_window_goes_on_without_a_rank_that_left_it() -> None:
    fleets, states = await of_two(), list[State]()

    async def body(fleet: Fleet, window: Window) -> None:
        if fleet is fleets[1]:
            raise ZeroDivisionError("the loss")
        try:
            await window.restore_weights()
        finally:
            states.extend(states_of([fleet]))

    failed = await in_windows(fleets, body)
    assert "the loss" in str(failed[0])
    assert states == [State.RELEASED]
    assert states_of(fleets) == [State.SERVING] * 2
    await are_in_step(fleets)


async def test_a_rank_that_is_cancelled_in_a_step_of_its_window_says_so_once() -> None:
    fleets = await of_two()

    async def body(fleet: Fleet, window: Window) -> None:
        if fleet is fleets[1]:
            fleet["e1"].adapter.script("load", HANG)
            async with asyncio.timeout(0.1):
                await window.update_weights()
        await window.update_weights()

    failed = await in_windows(fleets, body)
    assert isinstance(failed[1], TimeoutError)
    (cause,) = causes(failed[0])
    assert isinstance(cause, RankFailed)
    assert cause.gave_up
    assert states_of(fleets) == [State.SERVING] * 2
    await are_in_step(fleets)


@pytest.mark.parametrize(
    ("mine", "theirs", "differs"),
    [
        ({"a": GroupPlan(offload=False)}, None, "whether a takes part is yes there, and no here"),
        ({"a": GroupPlan(tags=["kv_cache"])}, None, "the tags of a is all there, and kv_cache here"),
        ({"a": GroupPlan(weights=V2)}, {"a": GroupPlan(weights=V1)}, "the version of a is v1 there, and v2 here"),
        ({"a": GroupPlan(weights=V1)}, {"a": GroupPlan(weights=PUSHED)}, "kind of source of a is Pushed there, and F"),
        ({"a": GroupPlan(mode="keep")}, None, "the pause mode of a is abort there, and keep here"),
    ],
)
async def test_plans_by_group_that_differ_are_refused(mine: Any, theirs: Any, differs: str) -> None:
    fleets = await of_two(groups={"a": Group(), "b": Group()}, group="a")
    before = [sent(engine) for fleet in fleets for engine in fleet]
    moves = [fleet.offload(plan=plan, deadline_s=LIMIT_S) for fleet, plan in zip(fleets, (mine, theirs), strict=True)]
    refused = await asyncio.gather(*moves, return_exceptions=True)
    assert isinstance(causes(refused[0])[0], PlansDiffer)
    assert differs in str(refused[0])
    assert [sent(engine) for fleet in fleets for engine in fleet] == before


async def test_a_step_between_of_ranks_of_which_one_has_no_engine_in_the_move() -> None:
    fleets, called = await of_two(), list[int]()
    await on_all(fleets, offload)

    async def move(fleet: Fleet) -> Any:
        some = [] if fleet is fleets[1] else None
        return await fleet.onload(between=lambda: called.append(1), engines=some, deadline_s=LIMIT_S)

    done = await on_all(fleets, move)
    assert all(isinstance(each, list) for each in done), done
    assert called == [1]
    assert states_of(fleets) == [State.SERVING, State.RELEASED]


@pytest.mark.parametrize(
    ("verb", "call"),
    [
        ("ensure", lambda fleet: fleet.ensure("released", deadline_s=LIMIT_S)),
        ("adopt", lambda fleet: fleet.adopt("sglang://127.0.0.1:1", deadline_s=LIMIT_S)),
        ("retire", lambda fleet: fleet.retire("e0", deadline_s=LIMIT_S)),
        ("replace", lambda fleet: fleet.replace("e0", "sglang://127.0.0.1:1", deadline_s=LIMIT_S)),
    ],
)
async def test_verbs_on_which_ranks_cannot_vote_are_refused(verb: str, call: Any) -> None:
    fleet, _ = await of_two()
    before = sent(fleet["e0"])
    with pytest.raises(ConfigurationError, match=rf"{verb}\(\) on a fleet with an agreement of ranks"):
        await call(fleet)
    assert sent(fleet["e0"]) == before
    assert [engine.name for engine in fleet] == ["e0"]
