"""Lost and late replies, cancelled commands and ended processes: the state never claims more than is known."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

import pytest

from ...core.calls import Call, Reply
from ...core.errors import DeadlineExceeded, NotProved, OperationFailed
from ...core.facts import Fact, Facts
from ...core.states import RING, State
from ...core.verdicts import Proved
from ...engine.engine import Engine
from .bench import Bench
from .coroutine_case import coroutine_case
from .fault_injector import Send, fault_at, fault_injector
from .steps import STEPS, Step, calls_of, engine_before, execute_step

Which = Literal["first", "last"]


class TroubleCases:
    """A lost reply, a passed deadline and a cancellation, at every step of the ring."""

    @pytest.mark.parametrize("which", ["first", "last"])
    @pytest.mark.parametrize("moment", ["never-sent", "answer-lost"])
    @pytest.mark.parametrize("step", STEPS)
    @coroutine_case
    async def test_lost(self, bench: Bench, step: Step, moment: str, which: Which) -> None:
        """After a lost reply the library finds out what the call did, and the engine can be brought back to serving."""
        engine = await engine_before(bench, step)
        index = _call_index(bench, engine, step, which)

        async def lose(call: Call, send: Send) -> Reply:
            if moment == "answer-lost":
                await send()
            return Reply("lost", detail="the connection broke")

        fault_injector(engine).fault = fault_at(index, lose)
        with pytest.raises(OperationFailed) as failed:
            await execute_step(bench, engine, step)
        await _recovers(bench, engine, failed.value)

    @pytest.mark.parametrize("step", STEPS)
    @coroutine_case
    async def test_deadline(self, bench: Bench, step: Step) -> None:
        """A call without a reply ends by the deadline, and the error names the state of the engine."""
        engine = await engine_before(bench, step)
        index, deadline_s = _call_index(bench, engine, step, "first"), 1.5

        async def hang(call: Call, send: Send) -> Reply:
            await asyncio.sleep(deadline_s * 0.75)
            return Reply("lost", detail="no answer in time", late=True)

        fault_injector(engine).fault = fault_at(index, hang)
        begun = time.monotonic()
        with pytest.raises((DeadlineExceeded, NotProved)) as failed:
            await execute_step(bench, engine, step, deadline_s=deadline_s)
        assert time.monotonic() - begun < deadline_s + 1.0
        await _recovers(bench, engine, failed.value)

    @pytest.mark.parametrize("moment", ["before-it-is-sent", "on-its-way", "when-answered"])
    @pytest.mark.parametrize("step", STEPS)
    @coroutine_case
    async def test_cancelled(self, bench: Bench, step: Step, moment: str) -> None:
        """The caller gets CancelledError, and recover() finds the state."""
        engine = await engine_before(bench, step)
        index = _call_index(bench, engine, step, "first")

        async def cancel(call: Call, send: Send) -> Reply:
            sending = None if moment == "before-it-is-sent" else asyncio.ensure_future(send())
            if sending is None or moment == "on-its-way":
                await asyncio.sleep(0.002)
                command.cancel()
            if sending is None and not engine.capabilities.cancellable:  # it is joined, and nothing else ends it
                return Reply("lost", detail="it was never sent", refused=True)
            if sending is None:
                await asyncio.sleep(60)
                raise AssertionError("the command was not cancelled")
            reply = await sending
            command.cancel()
            return reply

        fault_injector(engine).fault = fault_at(index, cancel)
        command = asyncio.create_task(execute_step(bench, engine, step))
        with pytest.raises(asyncio.CancelledError):
            await command
        assert engine.busy is None
        await _recovers(bench, engine, None)


class DeathCases:
    """The engine's processes are killed at every step and in every state: it is gone, and its memory is free."""

    @pytest.mark.parametrize("moment", ["before-the-call", "after-its-answer"])
    @pytest.mark.parametrize("step", STEPS)
    @coroutine_case
    async def test_killed(self, bench: Bench, step: Step, moment: str) -> None:
        """The command fails, the engine is gone, and its devices are free."""
        engine = await engine_before(bench, step)
        index = _call_index(bench, engine, step, "first")

        async def kill(call: Call, send: Send) -> Reply:
            reply = await send() if moment == "after-its-answer" else None
            await asyncio.to_thread(bench.subject.kill)
            return await send() if reply is None else reply

        fault_injector(engine).fault = fault_at(index, kill)
        with pytest.raises(OperationFailed) as failed:
            await execute_step(bench, engine, step)
        assert failed.value.settled is State.GONE
        await _is_gone(engine)

    @pytest.mark.parametrize("state", RING, ids=str)
    @coroutine_case
    async def test_killed_at_rest(self, bench: Bench, state: State) -> None:
        """`verify` finds that the engine is gone, and no read raises."""
        engine = await bench.engine_in(state)
        await asyncio.to_thread(bench.subject.kill)
        assert await engine.verify() is State.GONE
        await _is_gone(engine)


def _call_index(bench: Bench, engine: Engine, step: Step, which: Which) -> int:
    """Returns the index of the step's first or last call. Skips a step without calls, and the last of a single call."""
    calls = calls_of(bench, engine, step)
    if not calls or (which == "last" and len(calls) == 1):
        pytest.skip(f"{step} sends {len(calls) or 'no'} call")
    return 0 if which == "first" else len(calls) - 1


async def _recovers(bench: Bench, engine: Engine, error: OperationFailed | None) -> None:
    """Asserts that the error names the state, recovers the engine where it failed, and brings it back to serving."""
    fault_injector(engine).fault = None
    if error is not None:
        assert error.settled is engine.state, "the error does not name the state of the engine"
    if engine.state is State.FAILED:
        await engine.recover()
    assert engine.state in RING, f"recover() found no state: {engine.reason} ({engine.facts})"
    assert await engine.verify() is engine.state
    await bench.onload(engine)


async def _is_gone(engine: Engine) -> None:
    """Asserts that every read of a gone engine has an answer and none raises."""
    assert engine.memory_is_free
    adapter = fault_injector(engine).inner
    seen = await adapter.observe(frozenset({Fact.BOOT, Fact.ADMISSION, Fact.RUNNING}), deadline_s=2.0)
    assert seen.alive is False
    assert seen.boot is None
    assert not isinstance(await adapter.prove_idle(Facts(), deadline_s=1.0), Proved)
    assert isinstance(await adapter.barrier(deadline_s=1.0), bool)
    assert (await engine.recover()).state is State.GONE
