"""What a real SGLang with --enable-metrics tells of the requests of a pause, and what its clients got."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from lane import POLICY, PROMPTS, Lane, Streams, address
from server import RealSGLang

from lifecycle import Fleet
from lifecycle.core.requests import RequestFates
from lifecycle.testing import ScriptedRouter

FOUR = len(PROMPTS)
KEY = "user"


@pytest.fixture
def sglang(lane: Lane) -> RealSGLang:
    """The running server, which has metrics, and keys. Each test leaves it serving."""
    return lane.serve("keyed")


def fleet(server: RealSGLang) -> Fleet:
    """A fleet of this one engine; no router sends requests to it."""
    return Fleet.connect([address(server, api_key=KEY, admin_api_key="adm")], policy=POLICY, router=ScriptedRouter())


def ended(streams: Streams) -> Counter[str]:
    """How many requests ended in each way, as their clients saw it."""
    return Counter(str((reason or {})["type"]) for _, reason in streams.join().values())


async def test_four_that_are_aborted(sglang: RealSGLang) -> None:
    async with fleet(sglang) as engines:
        engine = engines["e"]
        streams = await asyncio.to_thread(Streams(sglang, tokens=1500, key=KEY).start)
        await engine.pause("abort")
        drained = await engine.drain()
        assert await asyncio.to_thread(ended, streams) == Counter(abort=FOUR)
        resumed = await engine.resume()
    print(f"drained: {drained.requests}; serving: {resumed.requests}")
    assert drained.requests == resumed.requests == RequestFates(FOUR, 0, FOUR, 0, 0, "engine")


async def test_four_that_are_kept_and_go_on(sglang: RealSGLang) -> None:
    async with fleet(sglang) as engines:
        engine = engines["e"]
        streams = await asyncio.to_thread(Streams(sglang, tokens=300, key=KEY).start)
        await engine.pause("keep")
        drained = await engine.drain()
        assert streams.in_flight == FOUR
        resumed = await engine.resume()
        assert await asyncio.to_thread(ended, streams) == Counter(length=FOUR)
    print(f"drained: {drained.requests}; serving: {resumed.requests}")
    assert drained.requests == resumed.requests == RequestFates(0, 0, 0, FOUR, 0, "engine")


async def test_four_that_finish_while_they_are_waited_for(sglang: RealSGLang) -> None:
    """Its counters do not say that none of them was aborted."""
    async with fleet(sglang) as engines:
        engine = engines["e"]
        streams = await asyncio.to_thread(Streams(sglang, tokens=300, key=KEY).start)
        await engines.pause(mode="wait")
        drained = await engine.drain()
        assert await asyncio.to_thread(ended, streams) == Counter(length=FOUR)
        resumed = await engine.resume()
    print(f"drained: {drained.requests}; serving: {resumed.requests}")
    assert drained.requests == resumed.requests == RequestFates(FOUR, FOUR, None, 0, 0, "engine")
