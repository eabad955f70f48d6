"""What a real vLLM tells of the requests of a pause, and what its clients got."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from vllm_lane import PROMPTS, Load, Stream, VLLMLane, fleet, streams
from vllm_real import RealVLLM

from lifecycle.core.facts import PauseMode
from lifecycle.core.requests import RequestFates

FOUR = len(PROMPTS)
#: So many that streams still run when a slow machine has paused the engine.
TOKENS = 3500


@pytest.fixture
def vllm(vllm_lane: VLLMLane) -> RealVLLM:
    """The running server. Each test leaves it serving."""
    return vllm_lane.serve("plain")


@pytest.fixture
def load(vllm: RealVLLM) -> Load:
    """Its open requests, of which there are none yet."""
    return Load(vllm)


def ended(running: list[Stream]) -> Counter[str]:
    """How many requests ended in each way, as their clients saw it."""
    for each in running:
        each.join()
    return Counter(str(each.reason) for each in running)


@pytest.mark.parametrize(
    ("mode", "told", "got"),
    [
        ("abort", RequestFates(FOUR, 0, FOUR, 0, 0, "engine"), "abort"),
        ("wait", RequestFates(FOUR, FOUR, 0, 0, 0, "engine"), "length"),
        ("keep", RequestFates(0, 0, 0, FOUR, 0, "engine"), "length"),
    ],
)
async def test_four_streams_and_a_pause_are_told(
    vllm: RealVLLM, load: Load, mode: PauseMode, told: RequestFates, got: str
) -> None:
    async with fleet(vllm) as engines:
        engine = engines["e"]
        running = await asyncio.to_thread(streams, vllm, TOKENS)
        await engine.pause(mode)
        drained = await engine.drain()
        await asyncio.to_thread(load.until, told.kept or 0)
        resumed = await engine.resume()
        assert await asyncio.to_thread(ended, running) == Counter({got: FOUR})
    print(f"{mode}: drained: {drained.requests}; serving: {resumed.requests}")
    assert drained.requests == resumed.requests == told


async def test_those_that_come_while_it_is_paused_are_told_as_kept(vllm: RealVLLM, load: Load) -> None:
    async with fleet(vllm) as engines:
        engine = engines["e"]
        running = await asyncio.to_thread(streams, vllm, TOKENS)
        await engine.pause("abort")
        drained = await engine.drain()
        late = Stream(vllm, PROMPTS[0], 20).start()
        await asyncio.to_thread(load.until, 1)
        resumed = await engine.resume()
        assert await asyncio.to_thread(ended, [*running, late]) == Counter(abort=FOUR, length=1)
    assert drained.requests == RequestFates(FOUR, 0, FOUR, 0, 0, "engine")
    assert resumed.requests == RequestFates(FOUR, 0, FOUR, 1, 0, "engine")
