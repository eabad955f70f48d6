"""Commands that are wrong, repeated or given at the wrong time are refused, and no lifecycle call is sent."""

from __future__ import annotations

import asyncio

import pytest

from ...core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from ...core.errors import EngineBusy, GuardRefused, InvalidTransition
from ...core.sources import FromDisk, Kept
from ...core.states import RING, State
from ...engine.engine import Engine
from ...rules.table import allowed
from .bench import Bench
from .coroutine_case import coroutine_case
from .fault_injector import fault_injector

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
    """Every command in every state without a row for it, bad tags, repeated commands, and two callers."""

    tags: frozenset[str]

    @pytest.mark.parametrize("state", RING, ids=str)
    @coroutine_case
    async def test_not_allowed_here(self, bench: Bench, state: State) -> None:
        """A command without a row in this state is refused; the error lists those with one, no call is sent."""
        engine = await bench.engine_in(state)
        before = list(fault_injector(engine).sent)
        for command in EVERY:
            if command.name not in allowed(state):
                with pytest.raises(InvalidTransition) as refused:
                    await engine.execute(command)
                assert refused.value.allowed == allowed(state)
        assert engine.state is state
        assert fault_injector(engine).sent == before
        await bench.onload(engine)

    @coroutine_case
    async def test_tags_that_cannot_be_meant(self, bench: Bench) -> None:
        """An empty or unknown tag, or weights without a source, is refused, and no lifecycle call is sent."""
        engine = await bench.engine_in(State.DRAINED)
        before = list(fault_injector(engine).sent)
        for tags in ([], ["nonsense"], [*self.tags, "nonsense"]):
            await self._refused(engine, Release(frozenset(tags), bench.source), "tags_releasable")
        weights = [spec for spec in engine.capabilities.tags if spec.stage == "weights"]
        if any(spec.on_release == "discarded" for spec in weights):
            await self._refused(engine, Release(None, None), "weights_recoverable")
            await self._refused(engine, Release(None, Kept()), "weights_recoverable")
        assert fault_injector(engine).sent == before
        await bench.onload(engine)

    @coroutine_case
    async def test_nothing_is_sent_twice(self, bench: Bench) -> None:
        """No call is planned for a tag that is already as the command wants it: such a call ends an SGLang process."""
        engine = await bench.engine_in(State.RELEASED)
        assert fault_injector(engine).plan(Release(None, bench.source), engine.facts) == ()
        await bench.onload(engine)
        plans = [fault_injector(engine).plan(command, engine.facts) for command in (RestoreWeights(), RestoreKV())]
        assert plans == [(), ()]

    @coroutine_case
    async def test_a_pause_again_is_a_pause(self, bench: Bench) -> None:
        """A second pause by the same mode changes nothing."""
        engine = await bench.engine_in(State.PAUSED)
        for _ in range(2):
            await engine.pause()
            assert engine.state is State.PAUSED
        await bench.onload(engine)

    @coroutine_case
    async def test_one_at_a_time(self, bench: Bench) -> None:
        """A second command is refused at once while the first one runs, and the first one succeeds."""
        engine = await bench.engine_in(State.DRAINED)
        releasing = asyncio.create_task(engine.release(weights=bench.source))
        await asyncio.sleep(0)
        with pytest.raises(EngineBusy) as busy:
            await engine.resume()
        assert busy.value.busy_with == "release"
        assert (await releasing).dest is State.RELEASED
        await bench.onload(engine)

    @coroutine_case
    async def test_a_checkpoint_that_is_not_there(self, bench: Bench) -> None:
        """After a load that failed the weights are not valid; the next load makes them valid."""
        engine = await bench.engine_in(State.WEIGHTS_RESTORED)
        if "disk" not in engine.capabilities.update:
            pytest.skip("the engine loads no weights from disk")
        with pytest.raises(Exception, match=r"nowhere|no/such") as failed:
            await engine.update_weights(NOWHERE)
        assert getattr(failed.value, "settled", None) is State.WEIGHTS_RESTORED
        assert engine.weights_refusal() is not None
        with pytest.raises(GuardRefused, match="weights_valid"):
            await engine.restore_kv()
        await engine.update_weights(bench.home)
        await bench.onload(engine)

    @coroutine_case
    async def test_an_unknown_way_to_push(self, bench: Bench) -> None:
        """A push by an unknown transport is refused with ValueError, which lists the known ones."""
        engine = await bench.attach()
        with pytest.raises(ValueError, match=r"\w"):
            fault_injector(engine).push_call("by pigeon", {}, "v")
        await bench.onload(engine)

    async def _refused(self, engine: Engine, command: Command, guard: str) -> None:
        with pytest.raises(GuardRefused) as refused:
            await engine.execute(command)
        assert guard in refused.value.reasons
        assert engine.state is State.DRAINED
