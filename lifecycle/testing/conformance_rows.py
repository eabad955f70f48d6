"""Every row of the table, on a real engine: the command leads where the row says, and what was claimed is so."""

from __future__ import annotations

import pytest

from ..core.commands import UpdateWeights
from ..core.errors import GuardRefused
from ..core.facts import PauseMode
from ..core.sources import FromDisk
from ..core.states import State
from ..core.verdicts import Proved
from ..engine.engine import Engine
from ..rules.table import OPERATIONS, Operation
from .conformance_bench import Bench
from .conformance_steps import STEPS, Step, command_of
from .conformance_story import story

STEP: dict[str, Step] = {step: step for step in STEPS}
UPDATES = [row for row in OPERATIONS if row.command == UpdateWeights.name]
OTHERS = [row for row in OPERATIONS if row.command != UpdateWeights.name]


def _named(row: Operation) -> str:
    return f"{row.command}-from-{row.source}"


class RowCases:
    """The ring and every other row; each tag alone; the ring twice; two tags apart."""

    other: FromDisk | None
    modes: frozenset[PauseMode]
    tags: frozenset[str]

    @story
    async def test_it_is_what_its_author_says(self, bench: Bench) -> None:
        """Its tags and pause modes are those that the suite's class names."""
        engine = await bench.attach()
        assert engine.state is State.SERVING
        assert {spec.name for spec in engine.capabilities.tags} == self.tags
        assert set(engine.capabilities.pause) == self.modes
        assert engine.facts.boot is not None, "without a boot a restart goes unnoticed"
        await bench.lead_home(engine)

    @story
    async def test_answers_differ(self, bench: Bench) -> None:
        """The prompts have different answers: the same for all would show nothing."""
        assert len({str(ids) for ids in bench.well}) == len(bench.well)
        assert await bench.answers() == bench.well
        bench.clean = True

    @pytest.mark.parametrize("row", OTHERS, ids=_named)
    @story
    async def test_row(self, bench: Bench, row: Operation) -> None:
        """The row's command, given in its source, leads to its destination, and that stands up to another look."""
        engine = await bench.engine_in(row.source)
        if row.command == "restore_kv" and engine.weights_refusal() is not None:
            await engine.update_weights(bench.home)
        record = await engine.execute(command_of(bench, STEP[row.command]))
        assert record.dest is engine.state is row.dest
        assert await engine.verify() is row.dest
        assert engine.memory_is_free == (row.dest is State.RELEASED)
        if row.command == "release":
            assert isinstance(record.verdicts["memory_returned"], Proved)
        await bench.lead_home(engine)

    @pytest.mark.parametrize("row", UPDATES, ids=_named)
    @story
    async def test_update(self, bench: Bench, row: Operation) -> None:
        """After the row's update it answers as those weights do, and after another as it did at first."""
        other = self.other
        if other is None:
            pytest.skip("it cannot load weights")
        engine = await self._ready_for(bench, row)
        record = await engine.update_weights(other)
        assert record.dest is engine.state is row.dest
        await _serve(bench, engine)
        theirs = await bench.answers()
        assert all(one != another for one, another in zip(theirs, bench.well, strict=True))
        await bench.reload(engine)
        await bench.lead_home(engine)

    async def _ready_for(self, bench: Bench, row: Operation) -> Engine:
        if row.source is not State.PAUSED:
            return await bench.engine_in(row.source)
        engine = await bench.attach()
        live = [mode for mode, traits in engine.capabilities.pause.items() if traits.live_update]
        if not live or "live" not in engine.capabilities.update:
            await _refused_live(engine, self.other)
            await bench.lead_home(engine)
            pytest.skip("it takes no weights while requests are frozen in it")
        await engine.pause(live[0])
        return engine

    @story
    async def test_each_tag_alone(self, bench: Bench) -> None:
        """One tag is released and comes back; the others stay mapped, and so does what they hold."""
        engine = await bench.attach()
        for tag in sorted(self.tags):
            if engine.capabilities.releasable != "any" and frozenset({tag}) not in engine.capabilities.releasable:
                continue
            await engine.pause("abort")
            await engine.drain()
            await engine.release([tag], weights=bench.source)
            assert engine.facts.unmapped() == {tag}
            assert engine.state is State.RELEASED
            await bench.lead_home(engine)

    @story
    async def test_kv_first_and_then_the_weights(self, bench: Bench) -> None:
        """What is released in two steps is restored in one."""
        engine = await bench.engine_in(State.DRAINED)
        if engine.capabilities.releasable != "any":
            pytest.skip("it releases certain tags together only")
        await engine.release(engine.capabilities.stage("kv"))
        await engine.restore_weights()  # there is nothing to restore, and nothing is sent
        await engine.release(engine.capabilities.stage("weights"), weights=bench.source)
        assert engine.facts.unmapped() == self.tags
        await bench.lead_home(engine)

    @story
    async def test_twice_in_a_row(self, bench: Bench) -> None:
        """The second time round is like the first."""
        engine = await bench.attach()
        for _ in range(2):
            await bench.lead(engine, State.RELEASED)
            assert engine.memory_is_free
            await bench.lead_home(engine)


async def _refused_live(engine: Engine, other: FromDisk | None) -> None:
    """An update under a pause that does not freeze is refused, and the engine not touched."""
    await engine.pause("abort")
    if other is not None:
        with pytest.raises(GuardRefused) as refused:
            await engine.update_weights(other)
        assert "live_update_supported" in refused.value.reasons


async def _serve(bench: Bench, engine: Engine) -> None:
    """It serves what it holds, whatever that is."""
    if engine.state is State.WEIGHTS_RESTORED:
        await engine.restore_kv()
    if engine.state is State.PAUSED:  # a live update leaves keys and values of the old weights: those are dropped
        draining = [
            mode for mode, traits in engine.capabilities.pause.items() if traits.drains and not traits.unsafe_from
        ]
        await engine.pause(draining[0])
        await engine.drain()
    await engine.resume()
