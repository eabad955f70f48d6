"""Cancellation of one engine's commands: at the k-th await of every row for every k, and by a timeout or a TaskGroup.

CancelledError and TimeoutError reach the caller. The state is what it was, or failed. The facts that the call under way
may have changed are unknown, and no call is sent before a barrier. recover() finds the state, and the engine can be
brought back to serving from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from observed_engine import judge_at_rest
from transports import VERBS, new_engine, ready, serve_again
from virtual_time import virtually

from lifecycle import Engine, InvalidTransition, State
from lifecycle.rules.table import OPERATIONS, Operation
from lifecycle.testing import HANG, HANG_AFTER, HANG_LATE

ROWS = [(row.command, row) for row in OPERATIONS]
ROWS += [("update by a push", row) for row in OPERATIONS if row.command == "update_weights"]
IDS = [f"{verb} from {row.source}" for verb, row in ROWS]
EVERY_ROW = pytest.mark.parametrize(("verb", "row"), ROWS, ids=IDS)
PAIRS: dict[str, int] = {}


async def given_up(work: Awaitable[Any], turns: int) -> bool:
    """Cancels the work after so many turns of the loop: True where that raised CancelledError, False where it ended."""
    task = asyncio.ensure_future(work)
    for _ in range(turns):
        await asyncio.sleep(0)
    if task.done():
        await task
        return False
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return True


def as_it_was_or_failed(engine: Engine, row: Operation, facts: Any) -> None:
    """Asserts that nothing has changed (the transition had not begun), or that the engine is failed."""
    assert engine.busy is None
    if engine.state is State.FAILED:
        return
    assert (engine.state, engine.facts) == (row.source, facts)
    assert not engine.record.uncertain.needs_barrier


def in_flight_is_unknown(engine: Engine) -> None:
    """Asserts that each fact which the open call may have changed is unknown."""
    for call, _ in engine.adapter.open_effects:
        assert engine.record.uncertain.needs_barrier
        for fact, value in call.effect.items():
            held = getattr(engine.facts, fact)
            assert held is None if not hasattr(value, "keys") else all(held[tag] is None for tag in value)


async def recovered(engine: Engine) -> None:
    """Recovers the engine and brings it back to serving; the judge finds no broken invariant."""
    if engine.state is State.FAILED:
        assert (await engine.recover()).state is not State.FAILED, str(engine.facts)
    judged(engine)
    await serve_again(engine)
    judged(engine)


def judged(engine: Engine) -> None:
    """Asserts that no invariant is broken and that no process was ended by a call."""
    judge_at_rest(engine.adapter.judge, engine, engine.adapter)
    engine.adapter.judge.check()
    assert engine.adapter.engine.deaths == engine.adapter.engine.violations == []


async def every_turn(verb: str, row: Operation, cut: Callable[[Engine, int], Awaitable[bool]], **how: bool) -> int:
    """Cancels the row's command at k = 1, 2, ... until it ends before; returns how many k there were."""
    for turns in range(1, 200):
        if not await cut(await ready(row, **how), turns):
            return turns - 1
    raise AssertionError(f"{verb} never ends")


def counted(what: str, verb: str, row: Operation, pairs: int) -> None:
    """Adds the pairs to the sum that is reported at the end."""
    assert pairs >= 2  # a drain waits twice: for what is observed, and for the idle proof
    PAIRS[f"{what}: {verb} from {row.source}"] = pairs


@EVERY_ROW
@pytest.mark.parametrize("late", [True, False], ids=["it happens later", "it never happens"])
def test_given_up_at_every_turn_it_recovers_and_comes_home(verb: str, row: Operation, late: bool) -> None:
    async def cut(engine: Engine, turns: int) -> bool:
        engine.adapter.late_when_cancelled, facts = late, engine.facts
        cancelled = await given_up(VERBS[verb](engine), turns)
        if cancelled:
            as_it_was_or_failed(engine, row, facts)
            in_flight_is_unknown(engine)
            await recovered(engine)
        return cancelled

    counted(f"late={late}", verb, row, virtually(every_turn(verb, row, cut)))


@EVERY_ROW
def test_nothing_is_sent_before_the_barrier_whatever_an_operator_says(verb: str, row: Operation) -> None:
    async def cut(engine: Engine, turns: int) -> bool:
        cancelled = await given_up(VERBS[verb](engine), turns)
        if cancelled and engine.record.uncertain.needs_barrier:
            with pytest.raises(InvalidTransition, match="recover"):
                engine.override_state(State.PAUSED, by="a test", reason="to send something at once")
            engine.adapter.journal.clear()
            await engine.recover()
            first = engine.adapter.journal.kinds("call", "barrier")[0]
            assert first.startswith("e: barrier")
        engine.adapter.judge.check()
        return cancelled

    counted("declared", verb, row, virtually(every_turn(verb, row, cut)))


@EVERY_ROW
def test_a_call_that_cannot_be_cancelled_has_ended_and_its_reply_counts(verb: str, row: Operation) -> None:
    async def cut(engine: Engine, turns: int) -> bool:
        facts = engine.facts
        cancelled = await given_up(VERBS[verb](engine), turns)
        if cancelled:
            as_it_was_or_failed(engine, row, facts)
            lines = [entry.kind for entry in engine.adapter.journal]
            assert lines.count("call") == lines.count("reply")
            assert engine.adapter.open_effects == []
            judged(engine)
            await recovered(engine)
        return cancelled

    counted("in process", verb, row, virtually(every_turn(verb, row, cut, cancellable=False)))


def test_the_pairs_are_counted(report: Callable[[str], None]) -> None:
    report(f"cancellation: {sum(PAIRS.values())} (row, k) pairs over {len(ROWS)} rows")


# a call that never returns, ended by asyncio.timeout or by a TaskGroup


HANGS = ["observe", "pause", "prove_idle", "release", "restore", "load", "push_tensor", "flush", "resume", "answers"]


async def hanging(row: Operation, what: str, act: Any) -> Engine:
    engine = await ready(row)
    engine.adapter.script(what, act)
    return engine


def reached(engine: Engine, what: str) -> bool:
    """Whether the call that was scripted to hang has been made."""
    return not engine.adapter._scripts[what]


@EVERY_ROW
@pytest.mark.parametrize("act", [HANG, HANG_AFTER, HANG_LATE], ids=["never", "done", "later"])
def test_a_timeout_reaches_its_caller(verb: str, row: Operation, act: Any) -> None:
    async def story(what: str) -> None:
        engine = await hanging(row, what, act)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await VERBS[verb](engine)
            assert not reached(engine, what)
        assert engine.busy is None
        in_flight_is_unknown(engine)
        engine.adapter.as_modelled()
        await recovered(engine)

    for what in HANGS:
        virtually(story(what))


@EVERY_ROW
def test_a_sibling_that_fails_ends_the_verb(verb: str, row: Operation) -> None:
    async def sibling() -> None:
        await asyncio.sleep(0.5)
        raise ValueError("the sibling broke")

    async def story(what: str) -> None:
        engine = await hanging(row, what, HANG_LATE)
        with pytest.raises(ExceptionGroup) as broke:
            async with asyncio.TaskGroup() as group:
                group.create_task(VERBS[verb](engine))
                group.create_task(sibling())
        assert [str(error) for error in broke.value.exceptions] == ["the sibling broke"]
        assert engine.busy is None
        engine.adapter.as_modelled()
        await recovered(engine)

    for what in HANGS:
        virtually(story(what))


@pytest.mark.parametrize("verb", ["verify", "recover"])
def test_looking_can_be_given_up_too(verb: str) -> None:
    async def story(turns: int) -> bool:
        engine = await new_engine()
        engine.adapter.engine.restart()
        cancelled = await given_up(getattr(engine, verb)(), turns)
        assert engine.busy is None
        if cancelled:
            await engine.recover()
            await serve_again(engine)
        return cancelled

    assert any(not virtually(story(turns)) for turns in range(1, 60))
