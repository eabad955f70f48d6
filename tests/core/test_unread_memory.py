"""What is asked of an engine, and how often, while what it holds cannot be read."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from rig import V1, engine_in

from lifecycle import Engine, NotProved, State, Unmeasurable
from lifecycle.engine.gather import REREAD_S, residual_again
from lifecycle.nodes.probes import NoProbe
from lifecycle.testing import QUICK, ScriptedAdapter

pytestmark = pytest.mark.virtual_time


async def measured() -> Engine:
    """A drained engine whose memory was read before."""
    engine = await engine_in(State.DRAINED)
    await engine.release(weights=V1)
    await engine.restore_weights()
    await engine.update_weights(V1)
    await engine.restore_kv()
    await engine.resume()
    await engine.pause()
    await engine.drain()
    return engine


class Unread:
    """The probe of an engine, which reads nothing until so many readings have failed."""

    def __init__(self, engine: Engine, failing: int) -> None:
        self._read, self._failing = engine.adapter.probe.read, failing
        self.at_s: list[float] = []
        engine.adapter.probe.read = self.read

    async def read(self, processes: Any, *, deadline_s: float) -> Any:
        """Unmeasurable, or what is resident."""
        self.at_s.append(time.monotonic())
        reading = await self._read(processes, deadline_s=deadline_s)
        return Unmeasurable(reason="the driver did not answer") if len(self.at_s) <= self._failing else reading


def idle_questions(engine: Engine) -> int:
    """How often the engine was asked whether it is idle."""
    return sum(entry.kind == "idle" for entry in engine.adapter.journal)


async def test_the_engine_is_not_asked_whether_it_is_idle_while_its_memory_is_waited_for() -> None:
    engine = await measured()
    probe, before = Unread(engine, 1000), idle_questions(engine)
    with pytest.raises(NotProved, match="did not answer"):
        await engine.release(weights=V1, deadline_s=2)
    assert len(probe.at_s) > 3, "it was asked again"
    assert idle_questions(engine) - before == 2, "before the wait and after it"


async def test_it_is_asked_anew_once_its_memory_can_be_read() -> None:
    engine = await measured()
    probe, before = Unread(engine, 4), idle_questions(engine)
    await engine.release(weights=V1, deadline_s=10)
    assert len(probe.at_s) > 5
    assert idle_questions(engine) - before == 2
    assert engine.memory_is_free


async def test_nothing_is_asked_again_of_a_probe_that_never_reads() -> None:
    policy = replace(QUICK, unprovable="warn")
    engine = await Engine(ScriptedAdapter("e"), policy=policy, probe=NoProbe("a test")).connect()
    before = len(engine.adapter.journal)
    started_s = time.monotonic()
    assert await residual_again(engine._session, deadline_s=60) == Unmeasurable(reason="a test")
    assert time.monotonic() - started_s < 1
    assert len(engine.adapter.journal) == before


async def test_readings_grow_further_apart() -> None:
    engine = await measured()
    probe = Unread(engine, 1000)
    await residual_again(engine._session, deadline_s=60)
    apart = [later - earlier for earlier, later in pairwise(probe.at_s)]
    assert max(apart) >= REREAD_S * 0.9
    assert len(apart) < 75
