"""A real SGLang with a weights backup: kept weights come back unchanged, and other weights can be loaded over them."""

from __future__ import annotations

import asyncio

import pytest
from lane import POLICY, PROMPTS, Lane, Streams, address, ask, output, outputs, source
from server import RealSGLang

from lifecycle import Fleet, Kept, State, Unreachable

MIB = 1 << 20


@pytest.fixture
def sglang(lane: Lane) -> RealSGLang:
    """The running server."""
    lane.expected(1)
    return lane.serve("backup")


def fleet(server: RealSGLang) -> Fleet:
    """A fleet of this one engine."""
    return Fleet.connect([address(server)], policy=POLICY)


async def asked(server: RealSGLang) -> list[list[int]]:
    """The greedy tokens after the prompts, without blocking the event loop."""
    return await asyncio.to_thread(outputs, server)


async def test_kept_twice_then_from_disk_then_kept(sglang: RealSGLang, lane: Lane) -> None:
    async with fleet(sglang) as engines:
        for weights, seed in ((Kept(), 0), (Kept(), 0), (source(1), 1), (Kept(), 1), (source(0), 0)):
            async with engines.offloaded(weights=weights) as (released,):
                assert released.returned_bytes is not None
                assert released.returned_bytes > 500 * MIB
            assert engines["e"].state is State.SERVING
            assert await asked(sglang) == lane.expected(seed), f"after {weights}"


async def test_parked_requests_go_on_with_the_weights_that_were_kept(sglang: RealSGLang) -> None:
    alone = {prompt: await asyncio.to_thread(output, sglang, prompt, 200) for prompt in PROMPTS}
    streams = await asyncio.to_thread(Streams(sglang, tokens=200).start)
    async with fleet(sglang) as engines, engines.offloaded(weights=Kept(), mode="keep"):
        assert streams.in_flight == len(PROMPTS)
    ends = await asyncio.to_thread(streams.join)
    assert {prompt: ids for prompt, (ids, _) in ends.items()} == alone


async def test_an_engine_killed_by_another_clients_resume_is_found_gone(sglang: RealSGLang) -> None:
    async with fleet(sglang) as engines:
        engine = engines["e"]
        await engine.pause()
        await engine.drain()
        with pytest.raises(OSError, match="closed connection"):
            await asyncio.to_thread(ask, sglang, "/resume_memory_occupation", {"tags": ["weights"]})
        with pytest.raises(Unreachable):
            await engine.release(weights=Kept())
        assert (await engine.recover()).state is State.GONE
        assert engine.memory_is_free
