"""What clients of a real vLLM get whose requests are in flight while it is paused, or queue meanwhile."""

from __future__ import annotations

import asyncio

import pytest
from vllm_lane import PROMPTS, Load, Stream, VLLMLane, fleet, output, source, streams, unseen
from vllm_real import RealVLLM

from lifecycle import FleetError, Kept, State
from lifecycle.core.facts import PauseMode
from lifecycle.core.verdicts import Refuted

#: So many that streams still run when a slow machine has paused the engine.
TOKENS = 3500


@pytest.fixture
def vllm(vllm_lane: VLLMLane) -> RealVLLM:
    """The running server. Each test leaves it serving the first checkpoint."""
    return vllm_lane.serve("plain")


@pytest.fixture
def load(vllm: RealVLLM) -> Load:
    """Its open requests, of which there are none yet."""
    return Load(vllm)


@pytest.fixture(scope="module")
def alone(vllm_lane: VLLMLane) -> dict[str, list[int]]:
    """What each prompt is answered with while nothing disturbs it."""
    return {prompt: output(vllm_lane.serve("plain"), prompt, TOKENS) for prompt in PROMPTS}


def fates(ended: list[Stream], alone: dict[str, list[int]]) -> set[tuple[str | None, bool]]:
    """Why each ended, and whether it got all its tokens. Those that it got must be those that it gets when alone."""
    for each in ended:
        print(f"{each.prompt}: {len(each.ids)} of {each.tokens} tokens, {each.reason}")
        assert each.done, f"{each.prompt}: no [DONE]"
        assert each.ids == alone[each.prompt][: len(each.ids)], f"{each.prompt}: not what it gets when alone"
    return {(each.reason, len(each.ids) == each.tokens) for each in ended}


@pytest.mark.parametrize(
    ("mode", "while_paused", "fate"),
    [
        ("abort", 0, ("abort", False)),
        ("wait", 0, ("length", True)),
        ("keep", 4, ("length", True)),
        ("freeze", 4, ("length", True)),
    ],
)
async def test_four_streams_and_a_pause(
    vllm: RealVLLM, load: Load, alone: dict[str, list[int]], mode: PauseMode, while_paused: int, fate: tuple[str, bool]
) -> None:
    async with fleet(vllm) as engines:
        engine = engines["e"]
        running = await asyncio.to_thread(streams, vllm, TOKENS)
        await engine.pause(mode)
        if mode != "freeze":
            await engine.drain()
            assert engine.facts.running == 0
        await asyncio.to_thread(load.until, while_paused)
        assert while_paused == 0 or all(each.in_flight for each in running)
        await engine.resume()
        assert engine.state is State.SERVING
    for each in running:
        await asyncio.to_thread(each.join)
    assert fates(running, alone) == {fate}


@pytest.mark.parametrize("mode", ["abort", "keep"])
async def test_a_request_that_comes_while_it_is_paused_runs_after_the_resume(
    vllm: RealVLLM, load: Load, alone: dict[str, list[int]], mode: PauseMode
) -> None:
    async with fleet(vllm) as engines:
        await engines.pause(mode=mode)
        await engines.drain()
        late = Stream(vllm, PROMPTS[0], TOKENS).start()
        await asyncio.to_thread(load.until, 1)
        assert late.in_flight
        assert late.ids == []
        assert await engines["e"].verify() is State.DRAINED, "a request that queues is none that runs"
        await engines.resume()
        assert engines["e"].state is State.SERVING
    await asyncio.to_thread(late.join)
    assert fates([late], alone) == {("length", True)}


@pytest.mark.parametrize("weights", ["kept", "from disk"])
async def test_four_streams_and_one_that_queues_go_through_two_rings(
    vllm: RealVLLM, load: Load, alone: dict[str, list[int]], weights: str
) -> None:
    where = Kept() if weights == "kept" else source(0)
    async with unseen(vllm) as engines:
        running = await asyncio.to_thread(streams, vllm, TOKENS)
        for turn in range(2):
            async with engines.offloaded(weights=where, mode="keep"):
                assert engines["e"].facts.unmapped() == {"weights", "kv_cache"}
                if not turn:
                    running.append(Stream(vllm, PROMPTS[0], TOKENS).start())
                    await asyncio.to_thread(load.until, 5)
                    assert running[-1].ids == []
            assert engines["e"].state is State.SERVING
    for each in running:
        await asyncio.to_thread(each.join)
    assert fates(running, alone) == {("length", True)}


async def test_a_release_that_frees_nothing_loses_no_request(
    vllm: RealVLLM, load: Load, alone: dict[str, list[int]]
) -> None:
    async with fleet(vllm) as engines:
        engine = engines["e"]
        running = await asyncio.to_thread(streams, vllm, TOKENS)
        with pytest.raises(FleetError, match="memory_returned"):
            await engines.offload(weights=Kept(), mode="keep")
        assert engine.state is State.RELEASED
        assert isinstance(engine.conditions["memory_returned"].verdict, Refuted)
        assert not engine.memory_is_free
        await asyncio.to_thread(load.until, len(running))
        assert all(each.in_flight for each in running)
        await engines.onload()
        assert engine.state is State.SERVING
    for each in running:
        await asyncio.to_thread(each.join)
    assert fates(running, alone) == {("length", True)}
