"""What a real SGLang with --enable-metrics tells of the requests of a pause, and what its clients got.

Calls come first: of a server that has had a stream it is not known how many calls have ended.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter

import pytest
from lane import POLICY, PROMPTS, Lane, Streams, address, ask, until_running
from questions import greedy
from server import RealSGLang

from lifecycle import Engine, Fleet
from lifecycle.core.requests import RequestFates
from lifecycle.testing import ScriptedRouter

FOUR = len(PROMPTS)


@pytest.fixture
def sglang(lane: Lane) -> RealSGLang:
    """The running server, which has metrics. Each test leaves it serving."""
    return lane.serve("counting")


def fleet(server: RealSGLang) -> Fleet:
    """A fleet of this one engine; no router sends requests to it."""
    return Fleet.connect([address(server)], policy=POLICY, router=ScriptedRouter())


class Calls:
    """Four calls that are no streams, each made by a thread of its own."""

    def __init__(self, server: RealSGLang, tokens: int) -> None:
        self.ends: Counter[str] = Counter()
        self._server, self._tokens = server, tokens
        self._threads = [threading.Thread(target=self._call, args=(each,), daemon=True) for each in PROMPTS]
        for thread in self._threads:
            thread.start()
        until_running(server, FOUR)

    def _call(self, prompt: str) -> None:
        answer = ask(self._server, "/generate", greedy(prompt, self._tokens), timeout_s=240)
        self.ends[answer["meta_info"]["finish_reason"]["type"]] += 1

    def join(self) -> Counter[str]:
        """How many ended in each way."""
        for thread in self._threads:
            thread.join(240)
        return self.ends


def ended(streams: Streams) -> Counter[str]:
    """How many streams ended in each way, as their clients saw it."""
    return Counter(str((reason or {})["type"]) for _, reason in streams.join(240).values())


async def until_open(engine: Engine, count: int, deadline_s: float = 30.0) -> None:
    """So many calls are known to be open."""
    end = time.monotonic() + deadline_s
    while (counts := await engine.adapter.request_counts(deadline_s=5.0)) is None or counts.open != count:
        assert time.monotonic() < end, counts
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("mode", "told", "got"),
    [
        ("abort", RequestFates(FOUR, 0, FOUR, 0, 0, "engine"), "abort"),
        ("keep", RequestFates(0, 0, 0, FOUR, 0, "engine"), "length"),
        ("wait", RequestFates(FOUR, FOUR, None, 0, 0, "engine"), "length"),
    ],
)
async def test_four_calls_and_a_pause_are_told(sglang: RealSGLang, mode: str, told: RequestFates, got: str) -> None:
    async with fleet(sglang) as engines:
        engine = engines["e"]
        calls = await asyncio.to_thread(Calls, sglang, 1500 if mode == "abort" else 200)
        await engines.pause(mode=mode)
        await engine.drain()
        await until_open(engine, told.kept or 0)
        resumed = await engine.resume()
        assert await asyncio.to_thread(calls.join) == Counter({got: FOUR})
    print(f"{mode}, calls: {resumed.requests}")
    assert resumed.requests == told


@pytest.mark.parametrize(
    ("mode", "told", "got"),
    [
        ("abort", RequestFates(finished=0, kept=0, refused=0, source="engine"), "abort"),
        ("keep", RequestFates(finished=0, kept=FOUR, refused=0, source="engine"), "length"),
        ("wait", RequestFates(finished=FOUR, kept=0, refused=0, source="engine"), "length"),
    ],
)
async def test_of_four_streams_less_is_told(sglang: RealSGLang, mode: str, told: RequestFates, got: str) -> None:
    """A stream counts as open for two seconds after its end, so that once it is drained it is not told which are."""
    async with fleet(sglang) as engines:
        engine = engines["e"]
        streams = await asyncio.to_thread(Streams(sglang, tokens=1500 if mode == "abort" else 200).start)
        await engines.pause(mode=mode)
        drained = await engine.drain()
        await until_open(engine, told.kept or 0)
        resumed = await engine.resume()
        assert await asyncio.to_thread(ended, streams) == Counter({got: FOUR})
    print(f"{mode}, streams: drained: {drained.requests}; serving: {resumed.requests}")
    assert resumed.requests == told
