"""A real vLLM in this process: the ring, what each request got, and calls that are given up and not cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from engine_thread import PROMPTS, Alone, StopsBeforeACall, fates, until
from vllm_object import TOKENS, AsyncLLMThread, end, engine_of, kill_core, source

from lifecycle import DeadlineExceeded, Fleet, FleetError, Kept, NotProved, State
from lifecycle.core.facts import PauseMode
from lifecycle.core.verdicts import Refuted
from lifecycle.sync import Fleet as BlockingFleet
from lifecycle.sync import Loop

#: So many tokens take longer than the drain that is given up.
#: So many that they outlast the deadline of a drain on a fast machine too.
LONG = 3500

BOTH = frozenset({"weights", "kv_cache"})


@pytest.fixture(scope="module")
def vllm() -> Iterator[AsyncLLMThread]:
    """An AsyncLLM that every test leaves serving the first checkpoint."""
    running = AsyncLLMThread()
    yield running
    running.close()


@pytest.fixture(scope="module")
def alone(vllm: AsyncLLMThread) -> Alone:
    """What each prompt is answered with while nothing disturbs it."""
    return vllm.alone(TOKENS)


async def test_what_it_can_do(vllm: AsyncLLMThread) -> None:
    async with Fleet([engine_of(vllm.engine)]) as fleet:
        engine = fleet["e"]
        told = engine.capabilities
        assert (told.engine, told.version, told.device, told.ranks) == ("vLLM", "0.32.0", "cpu", 1)
        assert told.releasable == {BOTH}
        assert set(told.pause) == {"abort", "wait", "keep", "freeze"}
        assert not told.cancellable
        assert told.launch_source is not None
        assert told.launch_source.path == source(0).path
        assert engine.state is State.SERVING
        assert engine.facts.running == 0
        assert engine.facts.boot is not None
        assert f":{vllm.core}:" in engine.facts.boot
        processes = await engine.adapter.processes()
        assert processes is not None
        assert [each.pid for each in processes] == [vllm.core]


@pytest.mark.parametrize(("mode", "fate"), [("keep", ("length", True)), ("abort", ("abort", False))])
async def test_the_whole_ring_with_requests_in_flight(
    vllm: AsyncLLMThread, alone: Alone, mode: PauseMode, fate: tuple[str, bool]
) -> None:
    running = await asyncio.to_thread(vllm.in_flight)
    async with Fleet([engine_of(vllm.engine)]) as fleet:
        async with fleet.offloaded(weights=Kept(), mode=mode):
            assert fleet["e"].state is State.RELEASED
            assert fleet["e"].facts.unmapped() == BOTH
            assert vllm.engine.get_num_unfinished_requests() == (len(PROMPTS) if mode == "keep" else 0)
        assert fleet["e"].state is State.SERVING
    assert await asyncio.to_thread(fates, running, alone) == {fate}


async def test_the_whole_ring_on_the_loop_of_the_engine(vllm: AsyncLLMThread, alone: Alone) -> None:
    """The commands come from the loop on which requests run; their clients read on meanwhile."""

    async def moved() -> State:
        async with Fleet([engine_of(vllm.engine)]) as fleet:
            async with fleet.offloaded(weights=Kept(), mode="keep"):
                assert fleet["e"].state is State.RELEASED
            return fleet["e"].state

    running = await asyncio.to_thread(vllm.in_flight)
    assert await asyncio.to_thread(vllm.on_loop, moved()) is State.SERVING
    assert await asyncio.to_thread(fates, running, alone) == {("length", True)}


def test_the_blocking_fleet(vllm: AsyncLLMThread, alone: Alone) -> None:
    running = vllm.in_flight()
    with BlockingFleet(Fleet([engine_of(vllm.engine)]), Loop()) as fleet:
        with fleet.offloaded(weights=Kept(), mode="keep"):
            assert fleet["e"].state is State.RELEASED
        assert fleet["e"].state is State.SERVING
    assert fates(running, alone) == {("length", True)}


async def test_a_sleep_that_frees_nothing_is_no_release(vllm: AsyncLLMThread, alone: Alone) -> None:
    running = await asyncio.to_thread(vllm.in_flight)
    async with Fleet([engine_of(vllm.engine, seen=True)]) as fleet:
        engine = fleet["e"]
        with pytest.raises(FleetError, match="memory_returned"):
            await fleet.offload(weights=Kept(), mode="keep")
        assert engine.state is State.RELEASED
        assert isinstance(engine.conditions["memory_returned"].verdict, Refuted)
        assert not engine.memory_is_free
        await fleet.onload()
        assert engine.state is State.SERVING
    assert await asyncio.to_thread(fates, running, alone) == {("length", True)}


async def test_other_weights_and_back(vllm: AsyncLLMThread, alone: Alone) -> None:
    async with Fleet([engine_of(vllm.engine)]) as fleet:
        for seed in (1, 0):
            async with fleet.offloaded(weights=source(seed)):
                assert str(fleet["e"].facts.contents["weights"]) == "garbage"
            assert await vllm_label(vllm) == f"seed-{seed}"
            now = await asyncio.to_thread(vllm.alone, 16)
            assert (now == {prompt: ids[:16] for prompt, ids in alone.items()}) is (seed == 0)


async def vllm_label(vllm: AsyncLLMThread) -> str:
    """The label of its weights, asked on its own loop."""
    label: str = await asyncio.to_thread(vllm.on_loop, vllm.engine.get_weight_version())
    return label


async def test_a_drain_whose_deadline_passes_settles_to_paused(vllm: AsyncLLMThread, alone: Alone) -> None:
    """A pause that waits stays when its caller has left, and its call is not cancelled."""
    running = await asyncio.to_thread(vllm.in_flight, LONG)
    async with Fleet([engine_of(vllm.engine)]) as fleet:
        engine = fleet["e"]
        await engine.pause("wait")
        with pytest.raises(NotProved, match="requests still run"):
            await engine.drain(deadline_s=3.0)
        assert engine.state is State.PAUSED
        await engine.drain(deadline_s=180)
        assert engine.facts.running == 0
        await engine.resume()
    for each in running:
        await asyncio.to_thread(each.join)
        assert (each.reason, len(each.ids)) == ("length", LONG)
        assert each.ids[:TOKENS] == alone[each.prompt]


@pytest.fixture
def stops(vllm: AsyncLLMThread) -> Iterator[StopsBeforeACall]:
    """Stops the engine core before the first call of a pause."""
    core = StopsBeforeACall(vllm.core, State.PAUSING)
    yield core
    core.go_on()


async def test_a_cancelled_command_returns_after_its_call_has_ended(
    vllm: AsyncLLMThread, stops: StopsBeforeACall
) -> None:
    async with Fleet([engine_of(vllm.engine, stops)]) as fleet:
        engine = fleet["e"]
        pausing = asyncio.create_task(engine.pause("keep"))
        assert await asyncio.to_thread(stops.stopped.wait, 30)
        pausing.cancel()
        done, _ = await asyncio.wait({pausing}, timeout=0.5)
        assert not done, "its call was left behind"
        stops.go_on()
        with pytest.raises(asyncio.CancelledError):
            await pausing
        assert engine.facts.admission == "closed", "its answer counts"
        assert await asyncio.to_thread(vllm.on_loop, vllm.engine.is_paused())
        found = await engine.recover()
        assert found.state in (State.PAUSED, State.DRAINED)
        await engine.resume()


async def test_a_deadline_shorter_than_a_call(vllm: AsyncLLMThread, stops: StopsBeforeACall) -> None:
    """What it did is unknown until it has ended; then it is found out, and nothing was asked before."""
    async with Fleet([engine_of(vllm.engine, stops)]) as fleet:
        engine = fleet["e"]
        with pytest.raises(DeadlineExceeded):
            await engine.pause("keep", deadline_s=10.0)
        assert engine.state is State.FAILED
        assert not await engine.adapter.barrier(deadline_s=0.3)
        stops.go_on()
        assert await engine.adapter.barrier(deadline_s=30)
        found = await engine.recover()
        assert found.state in (State.PAUSED, State.DRAINED)
        await engine.resume()
        assert engine.state is State.SERVING


async def test_an_engine_core_that_is_killed_is_gone_once_its_worker_has_ended_too(vllm: AsyncLLMThread) -> None:
    """The worker of a killed core runs on, and holds the memory."""
    async with Fleet([engine_of(vllm.engine)]) as fleet:
        engine = fleet["e"]
        await engine.pause("keep")
        workers = kill_core(vllm.core)
        await asyncio.to_thread(until, lambda: vllm.engine.errored)
        if any(worker.is_running() for worker in workers):
            assert await engine.verify() is State.FAILED
        end(workers)
        assert (await engine.recover()).state is State.GONE
        assert await engine.adapter.barrier(deadline_s=5)
