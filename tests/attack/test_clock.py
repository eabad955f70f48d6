"""Real engines whose driver's wall clock is set by an hour: in a command, between commands, and between two drivers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from another_driver import alive, url
from crash import DEADLINE_S, Point, brought_home, killed_at
from lifecycle.adapters.loopback import LoopbackProcess
from set_clock import WallClock

from lifecycle import Call, EngineHeld, Fleet, FromDisk, Policy, Reply, State
from lifecycle.store.journal import read_file
from lifecycle.store.sqlite import default_path

pytestmark = pytest.mark.slow

Start = Callable[..., LoopbackProcess]

HOUR_S = 3600.0

ahead_or_back = pytest.mark.parametrize("set_by_s", [HOUR_S, -HOUR_S], ids=["ahead", "back"])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> WallClock:
    monkeypatch.setenv("LIFECYCLE_STATE_DIR", str(tmp_path))
    return WallClock(monkeypatch)


@pytest.fixture
def engine(start: Start) -> Iterator[LoopbackProcess]:
    process = start()
    yield process
    assert alive(process), "it was killed by a call that was repeated"


def fleet(process: LoopbackProcess, policy: Policy) -> Fleet:
    return Fleet.connect([url(process)], policy=policy)


@ahead_or_back
async def test_between_the_commands_of_one_driver(
    set_by_s: float, engine: LoopbackProcess, clock: WallClock, step_1: FromDisk, policy: Policy
) -> None:
    async with fleet(engine, policy) as engines:
        async with engines.offloaded(weights=step_1):
            clock.ahead_s = set_by_s
            assert await engines.engines[0].verify() is State.RELEASED
        assert await engines.engines[0].verify() is State.SERVING
    entries = list(read_file(default_path()))
    turns = [after.at_s < before.at_s - HOUR_S / 2 for before, after in itertools.pairwise(entries)]
    assert any(turns) == (set_by_s < 0), "entries are in the order in which they were written, whatever their time"


@ahead_or_back
async def test_while_calls_are_under_way(
    set_by_s: float, engine: LoopbackProcess, clock: WallClock, step_1: FromDisk, policy: Policy
) -> None:
    async with fleet(engine, policy) as engines:
        adapter: Any = engines.engines[0].adapter
        send = adapter.send

        async def sets_the_clock(call: Call, *, deadline_s: float) -> Reply:
            clock.ahead_s += set_by_s
            reply: Reply = await send(call, deadline_s=deadline_s)
            return reply

        adapter.send = sets_the_clock
        async with engines.offloaded(weights=step_1):
            assert engines.engines[0].memory_is_free
        assert engines.engines[0].state is State.SERVING


@ahead_or_back
async def test_what_one_driver_kept_is_known_to_the_next(
    set_by_s: float, engine: LoopbackProcess, clock: WallClock, step_1: FromDisk, policy: Policy
) -> None:
    async with fleet(engine, policy) as engines:
        await engines.offload(weights=step_1)
    clock.ahead_s = set_by_s
    async with fleet(engine, policy) as engines:
        assert engines.engines[0].state is State.RELEASED
        assert engines.engines[0].memory_is_free
        await engines.onload()
        assert engines.engines[0].desired.version == step_1.version


@ahead_or_back
async def test_a_call_of_a_driver_that_was_killed_is_waited_for_as_long_as_it_may_run(
    set_by_s: float, engine: LoopbackProcess, clock: WallClock, step_1: FromDisk, policy: Policy
) -> None:
    killed_at(Point("release", "after"), url(engine), step_1, policy)
    begun, clock.ahead_s = time.monotonic(), set_by_s
    one = fleet(engine, policy)
    with pytest.raises(EngineHeld) as held:
        await one.engines[0].connect(deadline_s=0.2)
    await one.aclose()
    assert "since what it sent may run until then" in str(held.value)
    path = await brought_home(url(engine), step_1, policy)
    assert path[-1] == "serving"
    assert 0.5 < time.monotonic() - begun < DEADLINE_S + 3.0
