"""Every row of the table on a running engine: the command leads to the row's destination, and its claims are true."""

from __future__ import annotations

import pytest

from ...core.commands import UpdateWeights
from ...core.errors import GuardRefused
from ...core.facts import PauseMode
from ...core.sources import FromDisk
from ...core.states import State
from ...core.verdicts import Proved
from ...engine.engine import Engine
from ...rules.table import OPERATIONS, Operation
from .bench import Bench
from .coroutine_case import coroutine_case
from .steps import STEPS, Step, command_of

STEP: dict[str, Step] = {step: step for step in STEPS}
UPDATES = [row for row in OPERATIONS if row.command == UpdateWeights.name]
OTHERS = [row for row in OPERATIONS if row.command != UpdateWeights.name]


def _named(row: Operation) -> str:
    return f"{row.command}-from-{row.source}"


class RowCases:
    """Every row, each tag alone, two tags one after the other, and the ring twice."""

    other: FromDisk | None
    modes: frozenset[PauseMode]
    tags: frozenset[str]

    @coroutine_case
    async def test_it_is_what_its_author_says(self, bench: Bench) -> None:
        """The engine has the tags and pause modes that the subclass declares."""
        engine = await bench.attach()
        assert engine.state is State.SERVING
        assert {spec.name for spec in engine.capabilities.tags} == self.tags
        assert set(engine.capabilities.pause) == self.modes
        assert engine.facts.boot is not None, "without a boot identity a restart is not detected"
        await bench.onload(engine)

    @coroutine_case
    async def test_answers_differ(self, bench: Bench) -> None:
        """The prompts have different answers; equal ones could not show a change of weights."""
        assert len({str(ids) for ids in bench.launch_answers}) == len(bench.launch_answers)
        assert await bench.answers() == bench.launch_answers
        bench.reusable = True

    @pytest.mark.parametrize("row", OTHERS, ids=_named)
    @coroutine_case
    async def test_row(self, bench: Bench, row: Operation) -> None:
        """The row's command leads from its source to its destination, and `verify` confirms that state."""
        engine = await bench.engine_in(row.source)
        if row.command == "restore_kv" and engine.weights_refusal() is not None:
            await engine.update_weights(bench.home)
        record = await engine.execute(command_of(bench, STEP[row.command]))
        assert record.dest is engine.state is row.dest
        assert await engine.verify() is row.dest
        assert engine.memory_is_free == (row.dest is State.RELEASED)
        if row.command == "release":
            assert isinstance(record.verdicts["memory_returned"], Proved)
        await bench.onload(engine)

    @pytest.mark.parametrize("row", UPDATES, ids=_named)
    @coroutine_case
    async def test_update(self, bench: Bench, row: Operation) -> None:
        """The update changes every answer, and an update with the launch weights changes them back."""
        other = self.other
        if other is None:
            pytest.skip("the engine cannot load weights")
        engine = await self._ready_for(bench, row)
        record = await engine.update_weights(other)
        assert record.dest is engine.state is row.dest
        await _serve(bench, engine)
        updated = await bench.answers()
        assert all(one != another for one, another in zip(updated, bench.launch_answers, strict=True))
        await bench.reload(engine)
        await bench.onload(engine)

    async def _ready_for(self, bench: Bench, row: Operation) -> Engine:
        if row.source is not State.PAUSED:
            return await bench.engine_in(row.source)
        engine = await bench.attach()
        live = [mode for mode, traits in engine.capabilities.pause.items() if traits.live_update]
        if not live or "live" not in engine.capabilities.update:
            await _refused_live(engine, self.other)
            await bench.onload(engine)
            pytest.skip("the engine has no live update")
        await engine.pause(live[0])
        return engine

    @coroutine_case
    async def test_each_tag_alone(self, bench: Bench) -> None:
        """One tag is released and restored; the other tags stay mapped with their contents."""
        engine = await bench.attach()
        for tag in sorted(self.tags):
            if engine.capabilities.releasable != "any" and frozenset({tag}) not in engine.capabilities.releasable:
                continue
            await engine.pause()
            await engine.drain()
            await engine.release([tag], weights=bench.source)
            assert engine.facts.unmapped() == {tag}
            assert engine.state is State.RELEASED
            await bench.onload(engine)

    @coroutine_case
    async def test_kv_first_and_then_the_weights(self, bench: Bench) -> None:
        """Tags that were released by two commands are restored by one."""
        engine = await bench.engine_in(State.DRAINED)
        if engine.capabilities.releasable != "any":
            pytest.skip("the engine releases certain tags together only")
        await engine.release(engine.capabilities.stage("kv"))
        await engine.restore_weights()  # the weights are mapped, so no call is sent
        await engine.release(engine.capabilities.stage("weights"), weights=bench.source)
        assert engine.facts.unmapped() == self.tags
        await bench.onload(engine)

    @coroutine_case
    async def test_twice_in_a_row(self, bench: Bench) -> None:
        """A second offload and onload succeed like the first."""
        engine = await bench.attach()
        for _ in range(2):
            await bench.bring_to(engine, State.RELEASED)
            assert engine.memory_is_free
            await bench.onload(engine)


async def _refused_live(engine: Engine, other: FromDisk | None) -> None:
    """Asserts that an update under a pause that does not freeze is refused; no lifecycle call is sent for it."""
    await engine.pause()
    if other is not None:
        with pytest.raises(GuardRefused) as refused:
            await engine.update_weights(other)
        assert "live_update_supported" in refused.value.reasons


async def _serve(bench: Bench, engine: Engine) -> None:
    """Brings the engine to serving with the weights that it holds."""
    if engine.state is State.WEIGHTS_RESTORED:
        await engine.restore_kv()
    if engine.state is State.PAUSED:  # a drain drops the KV cache of the old weights, which a live update keeps
        draining = [
            mode for mode, traits in engine.capabilities.pause.items() if traits.drains and not traits.unsafe_from
        ]
        await engine.pause(draining[0])
        await engine.drain()
    await engine.resume()
