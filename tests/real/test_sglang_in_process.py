"""A real SGLang `Engine` in this process: the ring, what each request got, and calls that callers give up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from engine_thread import PROMPTS, Alone, StopsBeforeACall, fates
from sglang_object import TOKENS, SGLangThread, engine_of, greedy, source

from lifecycle import DeadlineExceeded, Fleet, State
from lifecycle.core.facts import PauseMode
from lifecycle.core.verdicts import Proved
from lifecycle.sync import Fleet as BlockingFleet
from lifecycle.sync import Loop


@pytest.fixture(scope="module")
def sglang() -> Iterator[SGLangThread]:
    """An engine that every test leaves serving the first checkpoint. Its shutdown ends every child of this process."""
    running = SGLangThread()
    yield running
    running.close()


@pytest.fixture(scope="module")
def alone(sglang: SGLangThread) -> Alone:
    """What each prompt is answered with while nothing disturbs it."""
    return sglang.alone(TOKENS)


async def test_what_it_can_do(sglang: SGLangThread) -> None:
    async with Fleet([engine_of(sglang.engine)]) as fleet:
        engine = fleet["e"]
        told = engine.capabilities
        assert (told.engine, told.version, told.device, told.ranks) == ("SGLang", "0.5.23", "cpu", 1)
        assert set(told.pause) == {"abort", "keep", "freeze"}
        assert told.memory_saver is True
        assert not told.cancellable
        assert told.launch_source is not None
        assert told.launch_source.path == source(0).path
        assert engine.state is State.SERVING
        assert engine.facts.boot is not None
        assert f":{sglang.scheduler}:" in engine.facts.boot


@pytest.mark.parametrize(("mode", "fate"), [("keep", ("length", True)), ("abort", ("abort", False))])
async def test_the_whole_ring_with_requests_in_flight(
    sglang: SGLangThread, alone: Alone, mode: PauseMode, fate: tuple[str, bool]
) -> None:
    """The stand-in really gives memory back, and destroys what was in it: the weights come from disk again."""
    running = await asyncio.to_thread(sglang.in_flight)
    async with Fleet([engine_of(sglang.engine)]) as fleet:
        async with fleet.offloaded(weights=source(0), mode=mode):
            engine = fleet["e"]
            assert engine.state is State.RELEASED
            assert isinstance(engine.conditions["memory_returned"].verdict, Proved)
            assert engine.memory_is_free
            assert len(sglang.engine.tokenizer_manager.rid_to_state) == (len(PROMPTS) if mode == "keep" else 0)
        assert fleet["e"].state is State.SERVING
    assert await asyncio.to_thread(fates, running, alone) == {fate}


async def test_the_ring_on_the_loop_of_the_engine(sglang: SGLangThread, alone: Alone) -> None:
    """The commands come from the loop on which requests run; their clients read on meanwhile."""

    async def moved() -> State:
        async with Fleet([engine_of(sglang.engine)]) as fleet:
            async with fleet.offloaded(weights=source(0), mode="keep"):
                assert fleet["e"].state is State.RELEASED
            return fleet["e"].state

    running = await asyncio.to_thread(sglang.in_flight)
    assert await asyncio.to_thread(sglang.on_loop, moved(), 180) is State.SERVING
    assert await asyncio.to_thread(fates, running, alone) == {("length", True)}


async def test_a_cancelled_command_returns_after_its_call_has_ended(sglang: SGLangThread) -> None:
    """A release that was given up half-way would have the next call take its answer."""
    stops = StopsBeforeACall(sglang.scheduler, State.RELEASING)
    async with Fleet([engine_of(sglang.engine, stops)]) as fleet:
        engine = fleet["e"]
        await engine.pause("abort")
        await engine.drain()
        releasing = asyncio.create_task(engine.release({"kv_cache"}))
        try:
            assert await asyncio.to_thread(stops.stopped.wait, 30)
            releasing.cancel()
            done, _ = await asyncio.wait({releasing}, timeout=0.5)
            assert not done, "its call was left behind"
        finally:
            stops.go_on()
        with pytest.raises(asyncio.CancelledError):
            await releasing
        assert engine.facts.mapped["kv_cache"] is False, "its answer counts"
        await engine.recover()
        await fleet.onload()
        assert engine.state is State.SERVING


async def test_a_deadline_shorter_than_a_call(sglang: SGLangThread, alone: Alone) -> None:
    """What it did is unknown until it has ended; then it is found out, and nothing was asked before."""
    stops = StopsBeforeACall(sglang.scheduler, State.RELEASING)
    async with Fleet([engine_of(sglang.engine, stops)]) as fleet:
        engine = fleet["e"]
        await engine.pause("abort")
        await engine.drain()
        try:
            with pytest.raises(DeadlineExceeded):
                await engine.release({"kv_cache"}, deadline_s=15.0)
            assert engine.state is State.FAILED
            assert not await engine.adapter.barrier(deadline_s=0.3)
        finally:
            stops.go_on()
        assert await engine.adapter.barrier(deadline_s=30)
        await engine.recover()
        print(f"found {engine.state} {engine.facts.mapped}")
        await fleet.onload()
        assert engine.state is State.SERVING
    assert await asyncio.to_thread(sglang.alone, TOKENS) == alone


def test_the_blocking_fleet_where_nobody_runs_the_loop(sglang: SGLangThread, alone: Alone) -> None:
    """As in a program of blocking calls alone: the engine's loop rests between them, and this library runs it."""
    sglang.rest()
    with BlockingFleet(Fleet([engine_of(sglang.engine)]), Loop()) as fleet:
        with fleet.offloaded(weights=source(1)):
            assert fleet["e"].memory_is_free
        other = sglang.engine.generate(PROMPTS[0], greedy(16))["output_ids"]
        assert tuple(other) != alone[PROMPTS[0]][:16]
        with fleet.offloaded(weights=source(0)):
            assert fleet["e"].memory_is_free
        again = sglang.engine.generate(PROMPTS[0], greedy(16))["output_ids"]
        assert tuple(again) == alone[PROMPTS[0]][:16]
