"""A rank that leaves says so to the others, and at the end of a window nobody stays away because of it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from rank_rig import LIMIT_S, WORLD, causes, offload, on_all, onload, ranks, states_of
from rig import V1, sent

from lifecycle import EngineBusy, Fleet, FleetError, RankFailed, State, Window
from lifecycle.core.deadline import Deadline
from lifecycle.core.errors import PlansDiffer
from lifecycle.testing import HANG, REJECTED

pytestmark = pytest.mark.virtual_time

#: The deadline of verbs that nobody should have to wait for.
LONG_S = 60.0


async def until(said: Any) -> None:
    async with asyncio.timeout(LONG_S):
        while not said():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_refusal_of_one_rank_at_the_end_of_a_window_keeps_no_other_rank_away() -> None:
    fleets = await ranks()
    commands: list[Any] = []

    async def step(fleet: Fleet) -> None:
        async with fleet.offloaded(weights=V1, deadline_s=LIMIT_S):
            if fleet is fleets[1]:  # somebody else has it when the window ends
                fleet["e1"].adapter.script("restore", HANG)
                commands.append(asyncio.create_task(fleet["e1"].restore_weights(deadline_s=LIMIT_S)))
                await until(lambda: fleet["e1"].busy)

    done = await on_all(fleets, step)
    assert states_of(fleets)[::2] == [State.SERVING] * 2
    assert isinstance(done[1], EngineBusy)
    for rank in (0, 2):
        (cause,) = causes(done[rank])
        assert isinstance(cause, RankFailed)
        assert (cause.rank, cause.phase) == (1, "onload: begin")
    await asyncio.gather(*commands, return_exceptions=True)


async def test_ranks_that_end_a_window_are_not_kept_by_one_that_makes_a_step_in_it() -> None:
    fleets = await ranks()

    async def step(fleet: Fleet) -> None:
        async with fleet.offloaded(weights=V1, deadline_s=LIMIT_S) as window:
            if fleet is fleets[1]:
                await window.restore_weights()

    done = await on_all(fleets, step)
    assert states_of(fleets) == [State.SERVING] * WORLD
    assert all(isinstance(cause, PlansDiffer) for each in done for cause in causes(each))
    assert [len(causes(each)) for each in done] == [1, 2, 1]


async def test_an_onload_goes_on_without_a_rank_that_was_cancelled_before_it_had_voted() -> None:
    fleets = await ranks()
    await on_all(fleets, offload)
    with fleets[1].ranks.alone():
        await onload(fleets[1])
    fleets[1]["e1"].adapter.script("observe", HANG)  # it is verified before the vote

    async def move(fleet: Fleet) -> Any:
        async with asyncio.timeout(0.1 if fleet is fleets[1] else None):
            return await fleet.onload(deadline_s=LONG_S)

    begun = time.monotonic()
    done = await on_all(fleets, move)
    assert time.monotonic() - begun < LIMIT_S
    assert states_of(fleets) == [State.SERVING] * WORLD
    assert isinstance(done[1], TimeoutError)
    for rank in (0, 2):
        (cause,) = causes(done[rank])
        assert isinstance(cause, RankFailed)
        assert (cause.phase, cause.gave_up) == ("onload: begin", True)


async def test_a_rank_that_is_cancelled_between_its_window_and_the_way_back_keeps_nobody_waiting() -> None:
    fleets = await ranks()

    async def step(fleet: Fleet) -> None:
        async with asyncio.timeout(LIMIT_S if fleet is fleets[1] else None):
            async with fleet.offloaded(weights=V1, deadline_s=LONG_S):
                if fleet is fleets[1]:  # where it is has to be found out first, and that takes long
                    fleet["e1"]._session.go("contradicted", reason="a test")
                    fleet["e1"].adapter.script("observe", HANG)

    begun = time.monotonic()
    done = await on_all(fleets, step)
    assert time.monotonic() - begun < LONG_S / 2
    assert states_of(fleets)[::2] == [State.SERVING] * 2
    assert isinstance(done[1], TimeoutError)
    for rank in (0, 2):
        (cause,) = causes(done[rank])
        assert isinstance(cause, RankFailed)
        assert cause.gave_up


async def test_a_window_that_one_rank_refuses_before_its_offload_is_entered_by_none_at_once() -> None:
    fleets = await ranks()
    entered: list[Fleet] = []

    async def step(fleet: Fleet) -> None:
        async with fleet.offloaded(weights=V1, deadline_s=LONG_S):
            entered.append(fleet)

    fleets[1]._in_windows.add("e1")  # another window has it
    begun = time.monotonic()
    done = await on_all(fleets, step)
    assert time.monotonic() - begun < LIMIT_S
    assert isinstance(done[1], EngineBusy)
    for rank in (0, 2):
        (cause,) = causes(done[rank])
        assert isinstance(cause, RankFailed)
        assert (cause.phase, cause.gave_up) == ("offload: begin", False)
        assert "another offloaded()" in cause.why
    assert states_of(fleets) == [State.SERVING] * WORLD
    assert [sent(engine) for fleet in fleets for engine in fleet] == [[]] * WORLD
    fleets[1]._in_windows.clear()
    assert await on_all(fleets, step) == [None] * WORLD, "they are in step"
    assert len(entered) == WORLD


async def test_a_window_that_is_cancelled_before_its_offload_is_entered_by_none_at_once() -> None:
    fleets = await ranks()

    async def step(fleet: Fleet) -> None:
        async with asyncio.timeout(0.1 if fleet is fleets[1] else None), fleet.offloaded(weights=V1, deadline_s=LONG_S):
            pass

    changed = fleets[1]._turns.of_change("adopt", Deadline(LONG_S))
    begun = time.monotonic()
    async with changed:  # which the window waits for
        done = await on_all(fleets, step)
    assert time.monotonic() - begun < LIMIT_S
    assert isinstance(done[1], TimeoutError)
    assert all(cause.gave_up for rank in (0, 2) for cause in causes(done[rank]) if isinstance(cause, RankFailed))
    assert [len(causes(done[rank])) for rank in (0, 2)] == [1, 1]
    assert states_of(fleets) == [State.SERVING] * WORLD
    assert await on_all(fleets, step) == [None] * WORLD, "they are in step"


async def test_a_window_that_is_refused_while_a_move_of_ranks_is_under_way_takes_no_vote_of_that_back() -> None:
    fleets = await ranks()
    move = asyncio.create_task(offload(fleets[0]))
    await until(lambda: fleets[0].ranks.begun)  # it waits for the others
    with pytest.raises(EngineBusy, match="offload is under way"):
        async with fleets[0].offloaded(weights=V1, deadline_s=LIMIT_S):
            pass
    await on_all(fleets[1:], offload)
    await move
    assert states_of(fleets) == [State.RELEASED] * WORLD


async def step_failed(fleet: Fleet, window: Window, *, on: Fleet) -> None:
    """A step of the window failed on the fleet `on`; all have caught that."""
    if fleet is on:
        fleet.engines[0].adapter.script("load", REJECTED)
    with pytest.raises(FleetError):
        await window.update_weights()


@pytest.mark.parametrize("failed_on", [0, 1])
async def test_one_that_leaves_after_a_step_that_it_had_caught_says_so_to_those_that_go_on(failed_on: int) -> None:
    fleets = await ranks()

    async def step(fleet: Fleet) -> None:
        async with fleet.offloaded(weights=V1, deadline_s=LONG_S) as window:
            await step_failed(fleet, window, on=fleets[failed_on])
            if fleet is fleets[1]:
                raise ZeroDivisionError("the loss")
            await window.update_weights()

    begun = time.monotonic()
    done = await on_all(fleets, step)
    assert time.monotonic() - begun < LIMIT_S
    assert states_of(fleets) == [State.SERVING] * WORLD
    assert isinstance(done[1], ZeroDivisionError)
    for rank in (0, 2):
        (cause,) = causes(done[rank])
        assert isinstance(cause, RankFailed)
        assert (cause.rank, cause.phase, cause.gave_up) == (1, "offloaded()", True)


@pytest.mark.parametrize("failed_on", [0, 1])
@pytest.mark.parametrize("leaving", [{1}, {0, 1, 2}], ids=["one", "all"])
async def test_what_one_says_that_leaves_where_all_leave_keeps_nobody_from_the_next_move(
    leaving: set[int], failed_on: int
) -> None:
    fleets = await ranks()

    async def step(fleet: Fleet) -> None:
        async with fleet.offloaded(weights=V1, deadline_s=LONG_S) as window:
            if fleets.index(fleet) in leaving:
                await step_failed(fleet, window, on=fleets[failed_on])
                raise ZeroDivisionError("the loss")
            if fleet is fleets[failed_on]:
                fleet.engines[0].adapter.script("load", REJECTED)
            await window.update_weights()

    begun = time.monotonic()
    for _ in range(2):
        done = await on_all(fleets, step)
        assert {rank for rank, each in enumerate(done) if isinstance(each, ZeroDivisionError)} == leaving
        assert states_of(fleets) == [State.SERVING] * WORLD
    done = await on_all(fleets, offload)
    assert states_of(fleets) == [State.RELEASED] * WORLD, done
    assert time.monotonic() - begun < LIMIT_S


async def test_an_error_of_a_step_that_leaves_the_window_after_others_went_well_is_said() -> None:
    fleets = await ranks()

    async def step(fleet: Fleet) -> None:
        async with fleet.offloaded(weights=V1, deadline_s=LONG_S) as window:
            if fleet is fleets[1]:
                fleet["e1"].adapter.script("load", REJECTED)
            with pytest.raises(FleetError) as failed:
                await window.update_weights()
            await window.update_weights()
            if fleet is fleets[1]:
                raise failed.value

    begun = time.monotonic()
    done = await on_all(fleets, step)
    assert time.monotonic() - begun < LIMIT_S
    assert [cause.gave_up for rank in (0, 2) for cause in causes(done[rank]) if isinstance(cause, RankFailed)] == [
        True
    ] * 2
    assert states_of(fleets) == [State.SERVING] * WORLD


@pytest.mark.parametrize("failed_on", [0, 1])
async def test_a_refusal_after_a_move_that_had_failed_is_said_as_any_other(failed_on: int) -> None:
    fleets = await ranks()
    fleets[failed_on].engines[0].adapter.script("pause", REJECTED)
    await on_all(fleets, offload)
    assert states_of(fleets) == [State.SERVING] * WORLD
    fleets[1]["e1"]._session.go("contradicted", reason="a test")
    begun = time.monotonic()
    done = await on_all(fleets, lambda fleet: fleet.offload(weights=V1, deadline_s=LONG_S))
    assert time.monotonic() - begun < LIMIT_S
    assert [type(cause) for rank in (0, 2) for cause in causes(done[rank])] == [RankFailed] * 2
