"""Cancellation of a fleet's verbs at every await: no engine stays busy or in a move, and all serve again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import nullcontext, suppress
from typing import Any

import pytest
from observed_engine import ObservedAdapter
from test_cancellation import given_up, judged
from transports import POLICY, V1, new_engine, push, serve_again
from virtual_time import virtually

from lifecycle import EngineBusy, Fleet, FleetError, Pushed, State
from lifecycle.testing import HANG_LATE, Journal, ScriptedRouter

Verb = Callable[[Fleet], Coroutine[Any, Any, Any]]
PAIRS: dict[str, int] = {}


async def away(fleet: Fleet) -> None:
    async with fleet.offloaded(weights=V1):
        await asyncio.sleep(0)


async def in_steps(fleet: Fleet) -> None:
    async with fleet.offloaded(weights=V1) as window:
        await window.restore_weights()
        await window.update_weights()
        await window.restore_kv()


async def joined(fleet: Fleet) -> None:
    engine = await new_engine("c")
    engine._session.has_router = True
    await fleet.adopt(engine, deadline_s=60.0)


async def pushed_to(fleet: Fleet) -> None:
    async with fleet.updating_weights("v3") as engines:
        await push(engines)


#: Each verb, and the verbs that come before it.
VERBS: dict[str, tuple[Verb, str]] = {
    "pause": (lambda fleet: fleet.pause(), ""),
    "drain": (lambda fleet: fleet.drain(), "pause"),
    "release": (lambda fleet: fleet.release(weights=V1), "pause drain"),
    "restore_weights": (lambda fleet: fleet.restore_weights(), "offload"),
    "update_weights": (lambda fleet: fleet.update_weights(V1), "offload restore_weights"),
    "update by a push": (lambda fleet: fleet.update_weights(Pushed(push, "v3")), "offload restore_weights"),
    "updating_weights": (pushed_to, "offload restore_weights"),
    "restore_kv": (lambda fleet: fleet.restore_kv(), "offload restore_weights update_weights"),
    "resume": (lambda fleet: fleet.resume(), "offload restore_weights update_weights restore_kv"),
    "offload": (lambda fleet: fleet.offload(weights=V1), ""),
    "onload": (lambda fleet: fleet.onload(), "offload"),
    "offloaded": (away, ""),
    "offloaded in steps": (in_steps, ""),
    "ensure": (lambda fleet: fleet.ensure("released", weights=V1, deadline_s=60.0), ""),
    "adopt": (joined, "offload onload"),
}
EVERY_VERB = pytest.mark.parametrize("verb", list(VERBS))


async def fleet_before(verb: str) -> Fleet:
    """Returns a fleet of two engines behind a router, in which this verb succeeds."""
    engines = [await new_engine(name) for name in "ab"]
    for engine in engines:
        engine._session.has_router = True
    fleet = Fleet(engines, policy=POLICY, router=ScriptedRouter(Journal()))
    for before in VERBS[verb][1].split():
        await VERBS[before][0](fleet)
    return fleet


async def all_serve_again(fleet: Fleet) -> None:
    """Recovers every failed engine and brings all back to serving; the judge finds no broken invariant.

    Only the trainer can repeat a push that was cancelled, so engines of such a push load their weights from disk.
    """
    for engine in fleet:
        assert engine.busy is engine.in_move is None
        assert engine.state.stable
        adapter: ObservedAdapter = engine.adapter
        adapter.as_modelled()
        if engine.state is State.FAILED:
            assert (await engine.recover()).state is not State.FAILED
        judged(engine)
    pushed = any(isinstance(engine.desired.source, Pushed) and engine.weights_refusal() for engine in fleet)
    with suppress(FleetError) if pushed else nullcontext():
        await fleet.onload()
    for engine in fleet:
        await serve_again(engine)
        judged(engine)


@EVERY_VERB
def test_given_up_at_every_turn_the_fleet_comes_home(verb: str) -> None:
    async def cut(turns: int) -> bool:
        fleet = await fleet_before(verb)
        cancelled = await given_up(VERBS[verb][0](fleet), turns)
        await all_serve_again(fleet)
        return cancelled

    turns = next(turns for turns in range(1, 400) if not virtually(cut(turns)))
    assert turns > 3
    PAIRS[verb] = turns - 1


def test_the_pairs_are_counted(report: Callable[[str], None]) -> None:
    report(f"cancellation of fleets: {sum(PAIRS.values())} (verb, k) pairs over {len(VERBS)} verbs")


@EVERY_VERB
@pytest.mark.parametrize("what", ["observe", "pause", "prove_idle", "release", "restore", "load", "resume", "answers"])
def test_a_timeout_reaches_the_caller_of_a_fleet(verb: str, what: str) -> None:
    async def story() -> None:
        fleet = await fleet_before(verb)
        fleet["a"].adapter.script(what, HANG_LATE)
        try:
            async with asyncio.timeout(0.5):
                await VERBS[verb][0](fleet)
        except TimeoutError:
            assert not fleet["a"].adapter._scripts[what]
        await all_serve_again(fleet)

    virtually(story())


@EVERY_VERB
def test_a_sibling_that_fails_ends_the_verb_of_a_fleet(verb: str) -> None:
    async def sibling() -> None:
        await asyncio.sleep(0.5)
        raise ValueError("the sibling broke")

    async def story() -> None:
        fleet = await fleet_before(verb)
        fleet["b"].adapter.script("observe", HANG_LATE)
        with pytest.raises(ExceptionGroup) as broke:
            async with asyncio.TaskGroup() as group:
                group.create_task(VERBS[verb][0](fleet))
                group.create_task(sibling())
        assert [str(error) for error in broke.value.exceptions] == ["the sibling broke"]
        await all_serve_again(fleet)

    virtually(story())


def test_a_timeout_in_the_body_of_offloaded_comes_through_once_the_fleet_is_back() -> None:
    async def story() -> None:
        fleet = await fleet_before("offload")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5), fleet.offloaded(weights=V1):
                await asyncio.sleep(60)
        assert [engine.state for engine in fleet] == [State.SERVING] * 2
        await all_serve_again(fleet)

    virtually(story())


def comes_home_given_up_at_any_turn(window: Verb) -> None:
    async def cut(turns: int) -> bool:
        fleet = await fleet_before("offloaded")
        cancelled = await given_up(window(fleet), turns)
        assert [engine.state for engine in fleet] == [State.SERVING] * 2, f"after {turns} turns"
        await all_serve_again(fleet)
        return cancelled

    assert next(turns for turns in range(1, 400) if not virtually(cut(turns))) > 40


def test_a_window_that_is_given_up_at_any_turn_comes_home_by_itself() -> None:
    comes_home_given_up_at_any_turn(away)


def test_a_window_in_steps_that_is_given_up_at_any_turn_comes_home_by_itself() -> None:
    comes_home_given_up_at_any_turn(in_steps)


def test_one_engine_that_hangs_does_not_let_others_in_meanwhile() -> None:
    async def story() -> None:
        fleet = await fleet_before("offload")
        fleet["a"].adapter.script("release", HANG_LATE)
        move = asyncio.create_task(fleet.offload(weights=V1))
        await asyncio.sleep(0.1)
        for refused in (fleet.onload, fleet["b"].resume, fleet.offload):
            with pytest.raises((EngineBusy, ExceptionGroup)):
                await refused()
        move.cancel()
        with pytest.raises(asyncio.CancelledError):
            await move
        await all_serve_again(fleet)

    virtually(story())
