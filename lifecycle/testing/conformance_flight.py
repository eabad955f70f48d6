"""Each pause mode, with requests in flight: what becomes of them is what the mode's traits promise."""

from __future__ import annotations

import asyncio
import time

import pytest

from ..core.capabilities import PauseTraits
from ..core.errors import GuardRefused
from ..core.facts import PAUSE_MODES, Fact, Grade, PauseMode
from ..core.states import State
from ..core.verdicts import Proved
from ..engine.engine import Engine
from .conformance_bench import Bench, meddled
from .conformance_story import story


class FlightCases:
    """Requests that run when a pause comes: ended early, or kept and finished as if nothing had been."""

    long: int

    @pytest.mark.parametrize("mode", PAUSE_MODES)
    @story
    async def test_in_flight(self, bench: Bench, mode: PauseMode) -> None:
        """Under this mode requests end, wait or go on as its traits say, with the tokens they have when left alone."""
        engine = await bench.attach(has_router=True)
        traits = engine.capabilities.pause.get(mode)
        if traits is None:
            await self._without(engine, mode)
            await bench.lead_home(engine)
            return
        alone = await _all(bench, self.long)
        running = asyncio.create_task(_all(bench, self.long))
        await until_running(engine, len(bench.prompts))
        _close_router(engine)
        await engine.pause(mode)
        await self._offload(bench, engine, traits, running)
        await bench.lead_home(engine)
        for got, whole in zip(await asyncio.wait_for(running, 60), alone, strict=True):
            assert got == whole[: len(got)], "a request got other tokens than when left alone"
            ended_early = not (traits.keeps_requests or traits.needs_router)
            assert (len(got) < len(whole)) == ended_early

    async def _offload(
        self, bench: Bench, engine: Engine, traits: PauseTraits, running: asyncio.Future[list[list[int]]]
    ) -> None:
        """Drained and released where the mode drains; refused where it does not."""
        if not traits.drains:
            with pytest.raises(GuardRefused, match="mode_drains"):
                await engine.drain()
            assert engine.state is State.PAUSED
            assert not running.done()
            return
        await engine.drain()
        await engine.release(weights=bench.source)
        if traits.keeps_requests:
            assert not running.done(), "a kept request ended while its engine was released"

    async def _without(self, engine: Engine, mode: PauseMode) -> None:
        _close_router(engine)
        with pytest.raises(GuardRefused, match="mode_supported"):
            await engine.pause(mode)
        assert engine.state is State.SERVING
        assert meddled(engine).sent == []

    @story
    async def test_a_request_that_comes_while_it_is_paused(self, bench: Bench) -> None:
        """It is not answered before the engine serves again, whatever becomes of the memory meanwhile."""
        engine = await bench.engine_in(State.PAUSED)
        late = asyncio.create_task(asyncio.to_thread(bench.subject.generate, bench.prompts[0], bench.tokens))
        await asyncio.sleep(0.2)
        await engine.drain()
        await engine.release(weights=bench.source)
        assert not late.done()
        await bench.lead_home(engine)
        assert await asyncio.wait_for(late, 60) == bench.well[0]


async def until_running(engine: Engine, count: int, deadline_s: float = 20.0) -> None:
    """So many requests run in the engine, as it counts them."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        seen = await engine.adapter.observe(frozenset({Fact.BOOT, Fact.RUNNING}), deadline_s=5.0)
        if seen.running is not None and seen.running >= count:
            return
    raise AssertionError(f"{count} requests never ran at once")


async def _all(bench: Bench, tokens: int) -> list[list[int]]:
    """The answers to all prompts, asked at once."""
    asked = (asyncio.to_thread(bench.subject.generate, prompt, tokens) for prompt in bench.prompts)
    return list(await asyncio.gather(*asked))


def _close_router(engine: Engine) -> None:
    """What a fleet learns when its router has confirmed; here the clients are those of the case."""
    engine.router_confirmed(False, Proved(grade=Grade.REPORTED), Grade.REPORTED)
