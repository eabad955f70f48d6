"""Answers that are lost or late, commands that are cancelled, processes that die: the state stays honest."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

import pytest

from ..core.calls import Call, Reply
from ..core.errors import DeadlineExceeded, NotProved, OperationFailed
from ..core.facts import Fact, Facts
from ..core.states import RING, State
from ..core.verdicts import Proved
from ..engine.engine import Engine
from .conformance_bench import Bench, Meddle, Send, meddled
from .conformance_steps import STEPS, Step, before, calls_of, take
from .conformance_story import story

Which = Literal["first", "last"]


class TroubleCases:
    """At every step of the ring: an answer that is lost or late, and a caller who cancels."""

    @pytest.mark.parametrize("which", ["first", "last"])
    @pytest.mark.parametrize("moment", ["never-sent", "answer-lost"])
    @pytest.mark.parametrize("step", STEPS)
    @story
    async def test_lost(self, bench: Bench, step: Step, moment: str, which: Which) -> None:
        """Without an answer it is found out what the call did, and the ring goes on from there."""
        engine = await before(bench, step)
        index = _index(bench, engine, step, which)

        async def lose(call: Call, send: Send) -> Reply:
            if moment == "answer-lost":
                await send()
            return Reply("lost", detail="the connection broke")

        meddled(engine).meddle = at(index, lose)
        with pytest.raises(OperationFailed) as failed:
            await take(bench, engine, step)
        await _goes_on(bench, engine, failed.value)

    @pytest.mark.parametrize("step", STEPS)
    @story
    async def test_deadline(self, bench: Bench, step: Step) -> None:
        """A call that is never answered ends within the deadline, and the error says where the engine is."""
        engine = await before(bench, step)
        index, deadline_s = _index(bench, engine, step, "first"), 1.5

        async def hang(call: Call, send: Send) -> Reply:
            await asyncio.sleep(deadline_s * 0.75)
            return Reply("lost", detail="no answer in time", late=True)

        meddled(engine).meddle = at(index, hang)
        begun = time.monotonic()
        with pytest.raises((DeadlineExceeded, NotProved)) as failed:
            await take(bench, engine, step, deadline_s=deadline_s)
        assert time.monotonic() - begun < deadline_s + 1.0
        await _goes_on(bench, engine, failed.value)

    @pytest.mark.parametrize("moment", ["before-it-is-sent", "on-its-way", "when-answered"])
    @pytest.mark.parametrize("step", STEPS)
    @story
    async def test_cancelled(self, bench: Bench, step: Step, moment: str) -> None:
        """Whoever cancels gets their cancellation, and recover() finds out where the engine is."""
        engine = await before(bench, step)
        index = _index(bench, engine, step, "first")

        async def cancel(call: Call, send: Send) -> Reply:
            sending = None if moment == "before-it-is-sent" else asyncio.ensure_future(send())
            if sending is None or moment == "on-its-way":
                await asyncio.sleep(0.002)
                victim.cancel()
            if sending is None:
                await asyncio.sleep(60)
                raise AssertionError("nobody was cancelled")
            reply = await sending
            victim.cancel()
            return reply

        meddled(engine).meddle = at(index, cancel)
        victim = asyncio.create_task(take(bench, engine, step))
        with pytest.raises(asyncio.CancelledError):
            await victim
        assert engine.busy is None
        await _goes_on(bench, engine, None)


class DeathCases:
    """The engine's processes are killed at every step and in every state: found gone, and its memory free."""

    @pytest.mark.parametrize("moment", ["before-the-call", "after-its-answer"])
    @pytest.mark.parametrize("step", STEPS)
    @story
    async def test_killed(self, bench: Bench, step: Step, moment: str) -> None:
        """The command fails, names the end of the process, and the devices are free."""
        engine = await before(bench, step)
        index = _index(bench, engine, step, "first")

        async def kill(call: Call, send: Send) -> Reply:
            reply = await send() if moment == "after-its-answer" else None
            await asyncio.to_thread(bench.subject.kill)
            return await send() if reply is None else reply

        meddled(engine).meddle = at(index, kill)
        with pytest.raises(OperationFailed) as failed:
            await take(bench, engine, step)
        assert failed.value.settled is State.GONE
        await _is_gone(engine)

    @pytest.mark.parametrize("state", RING, ids=str)
    @story
    async def test_killed_at_rest(self, bench: Bench, state: State) -> None:
        """A look finds out, and nothing raises but what was asked of the dead."""
        engine = await bench.engine_in(state)
        await asyncio.to_thread(bench.subject.kill)
        assert await engine.verify() is State.GONE
        await _is_gone(engine)


def at(index: int, trouble: Meddle) -> Meddle:
    """Trouble at the call of this index; the others are passed on."""
    count = -1

    async def meddle(call: Call, send: Send) -> Reply:
        nonlocal count
        count += 1
        return await (trouble(call, send) if count == index else send())

    return meddle


def _index(bench: Bench, engine: Engine, step: Step, which: Which) -> int:
    """Which of the step's calls is meant; a step without calls is skipped, and one with a single call asked once."""
    calls = calls_of(bench, engine, step)
    if not calls or (which == "last" and len(calls) == 1):
        pytest.skip(f"{step} sends {len(calls) or 'nothing'}")
    return 0 if which == "first" else len(calls) - 1


async def _goes_on(bench: Bench, engine: Engine, error: OperationFailed | None) -> None:
    """The engine is where the error says, or where it is found; it lives, and the ring leads on to serving."""
    meddled(engine).meddle = None
    if error is not None:
        assert error.settled is engine.state, "the error says where the engine is"
    if engine.state is State.FAILED:
        await engine.recover()
    assert engine.state in RING, f"it is not found out where the engine is: {engine.facts}"
    assert await engine.verify() is engine.state
    await bench.lead_home(engine)


async def _is_gone(engine: Engine) -> None:
    """Every question to the dead has an answer, and none raises."""
    assert engine.memory_is_free
    adapter = meddled(engine).inner
    seen = await adapter.observe(frozenset({Fact.BOOT, Fact.ADMISSION, Fact.RUNNING}), deadline_s=2.0)
    assert seen.alive is False
    assert seen.boot is None
    assert not isinstance(await adapter.prove_idle(Facts(), deadline_s=1.0), Proved)
    assert isinstance(await adapter.barrier(deadline_s=1.0), bool)
    assert await engine.recover() is State.GONE
