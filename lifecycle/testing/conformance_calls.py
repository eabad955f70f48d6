"""Calls that are wrong, made twice, or at the wrong time: refused, and the engine never hears of them."""

from __future__ import annotations

import asyncio

import pytest

from ..core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from ..core.errors import EngineBusy, GuardRefused, InvalidTransition
from ..core.sources import FromDisk, Kept
from ..core.states import RING, State
from ..engine.engine import Engine
from ..rules.table import allowed
from .conformance_bench import Bench, meddled
from .conformance_story import story

NOWHERE = FromDisk("/no/such/checkpoint", "nowhere")
EVERY: tuple[Command, ...] = (
    Pause(),
    Drain(),
    Release(None, NOWHERE),
    RestoreWeights(),
    UpdateWeights(NOWHERE),
    RestoreKV(),
    Resume(),
)


class CallCases:
    """Every command in every state that has no row for it; bad tags; nothing twice; two at once."""

    tags: frozenset[str]
    keeps: bool

    @pytest.mark.parametrize("state", RING, ids=str)
    @story
    async def test_not_allowed_here(self, bench: Bench, state: State) -> None:
        """Each command without a row here is refused with those that have one, and nothing is sent."""
        engine = await bench.engine_in(state)
        before = list(meddled(engine).sent)
        for command in EVERY:
            if command.name not in allowed(state):
                with pytest.raises(InvalidTransition) as refused:
                    await engine.execute(command)
                assert refused.value.allowed == allowed(state)
        assert engine.state is state
        assert meddled(engine).sent == before
        await bench.lead_home(engine)

    @story
    async def test_tags_that_cannot_be_meant(self, bench: Bench) -> None:
        """No tag, an unknown one, or weights without a way back: refused, and nothing is sent."""
        engine = await bench.engine_in(State.DRAINED)
        before = list(meddled(engine).sent)
        for tags in ([], ["nonsense"], [*self.tags, "nonsense"]):
            await self._refused(engine, Release(frozenset(tags), bench.source), "tags_releasable")
        if not self.keeps:
            await self._refused(engine, Release(None, None), "weights_recoverable")
            await self._refused(engine, Release(None, Kept()), "weights_recoverable")
        assert meddled(engine).sent == before
        await bench.lead_home(engine)

    @story
    async def test_nothing_is_sent_twice(self, bench: Bench) -> None:
        """For tags that are as a command wants them there is no call: SGLang dies of one."""
        engine = await bench.engine_in(State.RELEASED)
        assert meddled(engine).plan(Release(None, bench.source), engine.facts) == ()
        await bench.lead_home(engine)
        plans = [meddled(engine).plan(command, engine.facts) for command in (RestoreWeights(), RestoreKV())]
        assert plans == [(), ()]

    @story
    async def test_a_pause_again_is_a_pause(self, bench: Bench) -> None:
        """Pausing what is paused by that mode changes nothing."""
        engine = await bench.engine_in(State.PAUSED)
        for _ in range(2):
            await engine.pause("abort")
            assert engine.state is State.PAUSED
        await bench.lead_home(engine)

    @story
    async def test_one_at_a_time(self, bench: Bench) -> None:
        """A second command, given while one is under way, is refused at once and disturbs nothing."""
        engine = await bench.engine_in(State.DRAINED)
        releasing = asyncio.create_task(engine.release(weights=bench.source))
        await asyncio.sleep(0)
        with pytest.raises(EngineBusy) as busy:
            await engine.resume()
        assert busy.value.busy_with == "release"
        assert (await releasing).dest is State.RELEASED
        await bench.lead_home(engine)

    @story
    async def test_a_checkpoint_that_is_not_there(self, bench: Bench) -> None:
        """A load that fails leaves nothing that is called valid, and the next one mends it."""
        engine = await bench.engine_in(State.WEIGHTS_RESTORED)
        if "disk" not in engine.capabilities.update:
            pytest.skip("it loads nothing from disk")
        with pytest.raises(Exception, match=r"nowhere|no/such") as failed:
            await engine.update_weights(NOWHERE)
        assert getattr(failed.value, "settled", None) is State.WEIGHTS_RESTORED
        assert engine.weights_refusal() is not None
        with pytest.raises(GuardRefused, match="weights_valid"):
            await engine.restore_kv()
        await engine.update_weights(bench.home)
        await bench.lead_home(engine)

    @story
    async def test_an_unknown_way_to_push(self, bench: Bench) -> None:
        """A push by a way that the engine does not have is refused with those it has."""
        engine = await bench.attach()
        with pytest.raises(ValueError, match=r"\w"):
            meddled(engine).push_call("by pigeon", {}, "v")
        await bench.lead_home(engine)

    async def _refused(self, engine: Engine, command: Command, guard: str) -> None:
        with pytest.raises(GuardRefused) as refused:
            await engine.execute(command)
        assert guard in refused.value.reasons
        assert engine.state is State.DRAINED
