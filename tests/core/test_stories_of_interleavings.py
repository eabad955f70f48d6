"""Stories that the explorer (tests/model_check) found: what one answer showed, another had shown differently before."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from rig import V1, engine_in, sent

from lifecycle import Engine, OperationFailed, State
from lifecycle.core.record import Record
from lifecycle.core.verdicts import Unmeasurable
from lifecycle.testing import HANG_LATE, QUICK, Act, ScriptedAdapter
from lifecycle.testing.model import ScriptedEngine


class Rows:
    """A store in memory, as it was when its driver was killed."""

    def __init__(self) -> None:
        self.rows: dict[str, Record] = {}
        self.killed = False

    def save(self, engine: str, record: Record) -> None:
        if not self.killed:
            self.rows[engine] = record

    def load(self, engine: str) -> Record | None:
        return self.rows.get(engine)


def driver(adapter: ScriptedAdapter, rows: Rows) -> Engine:
    return Engine(adapter, name="e", policy=QUICK, probe=adapter.probe, lease=None, store=rows)


@pytest.mark.virtual_time
async def test_what_was_seen_before_the_barrier_does_not_count_when_attaching() -> None:
    """A driver was killed in a resume. Its call takes effect at the barrier of the next driver, which had looked."""
    adapter, rows = ScriptedAdapter("e"), Rows()
    engine = await driver(adapter, rows).connect()
    await engine.pause()
    await engine.drain()
    adapter.script("resume", HANG_LATE)
    resuming = asyncio.create_task(engine.resume())
    for _ in range(100):
        await asyncio.sleep(0)
    assert any(line.startswith("resume") for line in sent(engine))
    rows.killed = True
    another = await driver(adapter, rows).connect()
    resuming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await resuming
    assert adapter.engine.admission == "open"
    assert another.facts.admission == "open"
    assert another.state is State.SERVING


def closes_and_releases(model: ScriptedEngine) -> None:
    model.apply("pause", {"mode": "abort"})
    model.apply("release", {"tags": ["kv_cache", "weights"]})


async def test_who_closed_an_engine_between_its_resume_and_its_answer_may_have_released_it() -> None:
    engine = await engine_in(State.KV_RESTORED)
    engine.adapter.script("answers", Act(then=closes_and_releases))
    with pytest.raises(OperationFailed):
        await engine.resume()
    assert engine.state is State.RELEASED
    assert engine.facts.contents == {"weights": None}
    assert not engine.memory_is_free


@pytest.mark.virtual_time
async def test_a_release_ends_where_a_look_between_its_calls_finds_another_process() -> None:
    """The memory of the old process cannot be read any more, and the look that asks why names another boot."""
    engine = await engine_in(State.DRAINED)
    adapter: Any = engine.adapter

    def is_started_again(model: ScriptedEngine) -> None:
        model.restart()
        model.submit()
        adapter.probe.script(Unmeasurable(reason="no process of the engine is left to measure"))

    adapter.script("release", Act(then=is_started_again))
    with pytest.raises(OperationFailed, match="another process"):
        await engine.release(weights=V1)
    assert [call for call in sent(engine) if call.startswith("release")] == ["release(kv_cache)"]
    assert adapter.engine.alive
