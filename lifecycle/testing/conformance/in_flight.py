"""Each pause mode while requests run: they end or are kept as the mode's `PauseTraits` say."""

from __future__ import annotations

import asyncio
import time

import pytest

from ...core.capabilities import PauseTraits
from ...core.errors import GuardRefused
from ...core.facts import PAUSE_MODES, Fact, PauseMode
from ...core.states import State
from ...engine.engine import Engine
from ...fleet.routing import Routing
from ..router import ScriptedRouter
from .bench import Bench
from .coroutine_case import coroutine_case
from .fault_injector import fault_injector


class FlightCases:
    """Requests that run when the pause comes either end early, or are kept and finish with the same tokens."""

    long: int

    @pytest.mark.parametrize("mode", PAUSE_MODES)
    @coroutine_case
    async def test_in_flight(self, bench: Bench, mode: PauseMode) -> None:
        """Requests end, wait or go on as the mode's traits say; their tokens are those of an undisturbed request."""
        engine = await bench.attach(has_router=True)
        traits = engine.capabilities.pause.get(mode)
        if traits is None:
            await self._assert_unsupported(engine, mode)
            await bench.onload(engine)
            return
        undisturbed = await _generate_all(bench, self.long)
        running = asyncio.create_task(_generate_all(bench, self.long))
        await until_running(engine, len(bench.prompts))
        await _close_router(engine)
        await engine.pause(mode)
        await self._offload(bench, engine, traits, running)
        await bench.onload(engine)
        for got, whole in zip(await asyncio.wait_for(running, 60), undisturbed, strict=True):
            assert got == whole[: len(got)], "a request got other tokens than an undisturbed one"
            ended_early = not (traits.keeps_requests or mode == "wait")
            assert (len(got) < len(whole)) == ended_early

    async def _offload(
        self, bench: Bench, engine: Engine, traits: PauseTraits, running: asyncio.Future[list[list[int]]]
    ) -> None:
        """Drains and releases where the mode drains; asserts the refusal where it does not."""
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

    async def _assert_unsupported(self, engine: Engine, mode: PauseMode) -> None:
        await _close_router(engine)
        with pytest.raises(GuardRefused, match="mode_supported"):
            await engine.pause(mode)
        assert engine.state is State.SERVING
        assert fault_injector(engine).sent == []

    @coroutine_case
    async def test_a_request_that_comes_while_it_is_paused(self, bench: Bench) -> None:
        """A request that arrives during a pause is answered when the engine serves again, also after a release."""
        engine = await bench.engine_in(State.PAUSED)
        late = asyncio.create_task(asyncio.to_thread(bench.subject.generate, bench.prompts[0], bench.tokens))
        await asyncio.sleep(0.2)
        await engine.drain()
        await engine.release(weights=bench.source)
        assert not late.done()
        await bench.onload(engine)
        assert await asyncio.wait_for(late, 60) == bench.launch_answers[0]


async def until_running(engine: Engine, count: int, deadline_s: float = 20.0) -> None:
    """Returns once the engine counts so many running requests."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        seen = await engine.adapter.observe(frozenset({Fact.BOOT, Fact.RUNNING}), deadline_s=5.0)
        if seen.running is not None and seen.running >= count:
            return
    raise AssertionError(f"{count} requests never ran at once")


async def _generate_all(bench: Bench, tokens: int) -> list[list[int]]:
    """Returns the answers to all prompts, sent at the same time."""
    asked = (asyncio.to_thread(bench.subject.generate, prompt, tokens) for prompt in bench.prompts)
    return list(await asyncio.gather(*asked))


async def _close_router(engine: Engine) -> None:
    """Closes a router in memory for this engine: the clients are those of the case, and it sends no more requests."""
    await Routing(ScriptedRouter()).close([engine])
