"""What of a deadline the engines of a rank get, and what the vote: engines are asked as long as without ranks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from rank_rig import LIMIT_S, causes, on_all, ranks, states_of
from rig import V1

from lifecycle import Fleet, RankMissing, State
from lifecycle.core.deadline import Deadline
from lifecycle.core.observation import Observation
from lifecycle.testing import ScriptedAdapter

pytestmark = pytest.mark.virtual_time

#: Longer than an engine is given whose deadline has passed, as /server_info of a busy server takes.
ANSWERS_IN_S = 0.2


@pytest.fixture
def slow_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    observe = ScriptedAdapter.observe

    async def slow(self: ScriptedAdapter, *want: Any, **how: Any) -> Any:
        await asyncio.sleep(min(ANSWERS_IN_S, how["deadline_s"]))
        if how["deadline_s"] < ANSWERS_IN_S:
            return Observation()  # it has not answered
        return await observe(self, *want, **how)

    monkeypatch.setattr(ScriptedAdapter, "observe", slow)


async def test_engines_that_serve_are_not_called_failed_by_the_first_onload(slow_answers: None) -> None:
    fleets = await ranks(2)
    done = await on_all(fleets, lambda fleet: fleet.onload(deadline_s=60.0))
    assert states_of(fleets) == [State.SERVING] * 2
    assert done == [[], []]


async def test_drained_engines_are_not_called_failed_by_an_offload_long_after_the_verb_before(
    slow_answers: None,
) -> None:
    fleets = await ranks(2)
    for step in ("pause", "drain"):
        await on_all(fleets, lambda fleet, step=step: getattr(fleet, step)(deadline_s=5.0))  # type: ignore[misc]
    await asyncio.sleep(60.0)
    done = await on_all(fleets, lambda fleet: fleet.offload(weights=V1, deadline_s=60.0))
    assert states_of(fleets) == [State.RELEASED] * 2, done


async def test_one_that_was_released_before_is_asked_long_enough_after_a_phase_that_took_all_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleets = await ranks(2, names=("a", "b"))
    for fleet in fleets:
        with fleet.ranks.alone():
            await fleet.offload(weights=V1, engines=[fleet.engines[1]])
    late = fleets[0].engines
    send = ScriptedAdapter.send
    asked: list[float] = []

    async def nearly_too_long(self: ScriptedAdapter, call: Any, **how: Any) -> Any:
        if call.name == "release" and self is late[0].adapter:
            await asyncio.sleep(how["deadline_s"] - 0.001)
        return await send(self, call, **how)

    observe = ScriptedAdapter.observe

    async def timed(self: ScriptedAdapter, *want: Any, **how: Any) -> Any:
        if self is late[1].adapter:
            asked.append(how["deadline_s"])
        return await observe(self, *want, **how)

    monkeypatch.setattr(ScriptedAdapter, "send", nearly_too_long)
    monkeypatch.setattr(ScriptedAdapter, "observe", timed)
    await on_all(fleets, lambda fleet: fleet.offload(weights=V1, deadline_s=40.0))
    assert states_of(fleets) == [State.RELEASED] * 4
    assert min(asked) > ANSWERS_IN_S


async def test_what_a_step_waited_for_another_rank_is_not_taken_from_its_engines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleets = await ranks(2)
    given: dict[str, float] = {}
    send = ScriptedAdapter.send

    async def timed(self: ScriptedAdapter, call: Any, **how: Any) -> Any:
        given[self.name] = how["deadline_s"]
        return await send(self, call, **how)

    monkeypatch.setattr(ScriptedAdapter, "send", timed)

    async def step(fleet: Fleet) -> Any:
        if fleet is fleets[1]:
            await asyncio.sleep(0.9 * LIMIT_S)
        return await fleet.pause(deadline_s=LIMIT_S)

    done = await on_all(fleets, step)
    assert states_of(fleets) == [State.PAUSED] * 2, done
    assert given["e0"] == pytest.approx(given["e1"], rel=0.1)


async def test_a_rank_without_engines_in_a_step_waits_for_its_end_as_long_as_the_others_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleets = await ranks(2)
    send = ScriptedAdapter.send

    async def takes_time(self: ScriptedAdapter, call: Any, **how: Any) -> Any:
        await asyncio.sleep(0.5 * LIMIT_S)
        return await send(self, call, **how)

    monkeypatch.setattr(ScriptedAdapter, "send", takes_time)

    async def step(fleet: Fleet) -> Any:
        if fleet is fleets[0]:
            await asyncio.sleep(0.9 * LIMIT_S)
        return await fleet.pause(engines=None if fleet is fleets[0] else [], deadline_s=LIMIT_S)

    done = await on_all(fleets, step)
    assert [len(each) for each in done] == [1, 0], done


async def test_a_rank_whose_step_between_was_quick_waits_for_one_that_takes_its_time() -> None:
    fleets = await ranks(2)
    await on_all(fleets, lambda fleet: fleet.offload(weights=V1, deadline_s=LIMIT_S))

    async def move(fleet: Fleet) -> Any:
        async def between() -> None:
            await asyncio.sleep(2.5 * LIMIT_S if fleet is fleets[1] else 0)

        return await fleet.onload(between=between, between_deadline_s=3 * LIMIT_S, deadline_s=LIMIT_S)

    done = await on_all(fleets, move)
    assert all(isinstance(each, list) for each in done), done
    assert states_of(fleets) == [State.SERVING] * 2


@pytest.mark.parametrize("overall", [False, True], ids=["each phase", "overall"])
async def test_a_rank_that_never_ends_its_step_between_is_waited_for_until_its_deadline_and_no_longer(
    overall: bool,
) -> None:
    fleets = await ranks(2)
    await on_all(fleets, lambda fleet: fleet.offload(weights=V1, deadline_s=LIMIT_S))
    begun: list[float] = []

    async def move(fleet: Fleet) -> Any:
        async def between() -> None:
            begun.append(time.monotonic())
            fleets[1].ranks._agreement.silent = True  # type: ignore[union-attr]

        limit = Deadline(LIMIT_S) if overall else LIMIT_S
        return await fleet.onload(between=between, between_deadline_s=3 * LIMIT_S, deadline_s=limit)

    failed, _ = await on_all(fleets, move)
    assert [type(each) for each in causes(failed)] == [RankMissing]
    assert time.monotonic() - begun[0] == pytest.approx(LIMIT_S if overall else 4 * LIMIT_S, rel=0.1)


async def test_a_step_between_without_a_deadline_takes_nothing_from_what_the_others_are_waited_for() -> None:
    fleets = await ranks(2)
    await on_all(fleets, lambda fleet: fleet.offload(weights=V1, deadline_s=LIMIT_S))

    async def move(fleet: Fleet) -> Any:
        async def between() -> None:
            await asyncio.sleep((2.5 if fleet is fleets[1] else 2) * LIMIT_S)

        return await fleet.onload(between=between, deadline_s=LIMIT_S)

    done = await on_all(fleets, move)
    assert states_of(fleets) == [State.SERVING] * 2, done
