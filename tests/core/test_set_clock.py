"""What is written down with a time, read after somebody set the wall clock: leases, intents, journals, processes."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from journal_rig import driver
from rig import V1
from set_clock import WallClock

from lifecycle import Engine, EngineHeld, State
from lifecycle.core.journal import Attached, CallSent, CommandBegan, CommandEnded, Entry, StateEntered
from lifecycle.core.lease import Driver, LeasedEngine, LeaseHeld, LeaseUse
from lifecycle.nodes import clock as host_clock
from lifecycle.nodes.processes import by_pid, is_alive
from lifecycle.render.trace import trace
from lifecycle.store.codec import from_text, to_text
from lifecycle.store.journal import Bounds, read_file
from lifecycle.store.leases import Leases
from lifecycle.store.sqlite import Store
from lifecycle.testing import HANG, Act, ScriptedAdapter

A, B = Driver("a", "pid 1 on here"), Driver("b", "pid 2 on here")
ENGINE = LeasedEngine("here:30000", "boot-1")
HOUR_S = 3600.0

ahead_or_back = pytest.mark.parametrize("set_by_s", [HOUR_S, -HOUR_S], ids=["ahead", "back"])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    return WallClock(monkeypatch)


# leases


@pytest.mark.slow
@ahead_or_back
def test_a_call_that_may_run_holds_its_engine_as_long_as_it_may(
    set_by_s: float, clock: WallClock, tmp_path: Path
) -> None:
    leases = Leases(tmp_path / "leases")
    leases.take(A, ENGINE, LeaseUse("release", call_until_s=time.time() + 2.0, sends=True))
    leases.free(A, ENGINE)
    begun, clock.ahead_s = time.monotonic(), set_by_s
    with pytest.raises(LeaseHeld) as held:
        leases.take(B, ENGINE, LeaseUse("offload"))
    left_s = (held.value.lease.call_until_s or 0.0) - time.time()
    assert 0.0 < left_s < 2.0, "it is said by the clock as it stands now"
    while _is_held(leases):
        assert time.monotonic() < begun + 6.0, "it waits for the clock that was set"
    assert time.monotonic() >= begun + left_s - 0.05


def _is_held(leases: Leases) -> bool:
    try:
        leases.take(B, ENGINE, LeaseUse("offload"))
    except LeaseHeld:
        time.sleep(0.02)
        return True
    return False


async def test_a_call_that_was_given_up_is_waited_for_where_the_clock_was_set_meanwhile(
    clock: WallClock, tmp_path: Path
) -> None:
    adapter = ScriptedAdapter("e")
    engine = await _releasing(adapter, tmp_path, lease=Leases(tmp_path / "leases"), store=Store(tmp_path / "own"))
    adapter.late_when_cancelled = True
    adapter.script("barrier", *[Act("lost", "never")] * 9)
    clock.ahead_s = HOUR_S
    release = engine.release_task
    release.cancel()
    await asyncio.gather(release, return_exceptions=True)
    await engine.driver.aclose()
    with pytest.raises(EngineHeld, match="may run until"):
        await driver(adapter, tmp_path, lease=Leases(tmp_path / "leases")).connect()


def test_a_file_of_an_earlier_version_is_used_on(tmp_path: Path) -> None:
    path = tmp_path / "leases"
    Leases(path).take(A, ENGINE, LeaseUse("release", call_until_s=time.time() + 60, sends=True))
    with closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE leases DROP COLUMN clock")
    Leases(path).free(A, ENGINE)
    with pytest.raises(LeaseHeld):
        Leases(path).take(B, ENGINE, LeaseUse("offload"))
    assert Leases(path).take(A, ENGINE, LeaseUse("offload")).uses == 1


# intents


@dataclass
class Releasing:
    """A driver whose release was sent and is not answered."""

    driver: Engine
    release_task: asyncio.Task[object]


async def _releasing(adapter: ScriptedAdapter, path: Path, **how: Any) -> Releasing:
    engine = await driver(adapter, path, **how).connect()
    await engine.pause()
    await engine.drain()
    adapter.script("release", HANG)
    task = asyncio.create_task(engine.release(weights=V1, deadline_s=60.0))
    async with asyncio.timeout(5.0):
        while not adapter.journal.calls()[-1].startswith("e: release"):
            await asyncio.wait({task}, timeout=0.01)
    return Releasing(engine, task)


@ahead_or_back
async def test_an_intent_holds_its_engine_by_the_clock_as_it_was(
    set_by_s: float, clock: WallClock, tmp_path: Path
) -> None:
    adapter = ScriptedAdapter("e")
    first = await _releasing(adapter, tmp_path, lease=None)
    clock.ahead_s = set_by_s
    with pytest.raises(EngineHeld) as held:
        await driver(adapter, tmp_path, lease=None).connect()
    until_s = datetime.fromisoformat(held.value.until.partition(",")[0]).timestamp()
    assert 0.0 < until_s - time.time() < 70.0, held.value.until
    first.release_task.cancel()
    await asyncio.gather(first.release_task, return_exceptions=True)


async def test_a_row_of_an_earlier_version_has_an_intent_without_a_clock(tmp_path: Path) -> None:
    adapter = ScriptedAdapter("e")
    first = await _releasing(adapter, tmp_path, lease=None)
    record = Store(tmp_path / "engines.sqlite3").load(adapter.url)
    assert record is not None
    row = json.loads(to_text(record))
    assert row["record"]["uncertain"]["intent"].pop("clock")
    older = from_text(json.dumps(row)).uncertain.intent
    assert older is not None
    assert host_clock.set_since_s(older.clock) == 0.0
    first.release_task.cancel()
    await asyncio.gather(first.release_task, return_exceptions=True)


@pytest.mark.parametrize("stamp", ["", "another boot/1.0", "nothing", f"{host_clock.host_boot()}/no number"])
def test_where_a_stamp_says_nothing_the_clock_counts_as_it_is(stamp: str) -> None:
    assert host_clock.set_since_s(stamp) == 0.0


# processes


@ahead_or_back
def test_a_process_is_the_same_one_after_the_clock_was_set(set_by_s: float, clock: WallClock) -> None:
    before = by_pid(os.getpid())
    clock.ahead_s = set_by_s
    assert by_pid(os.getpid()) == before
    assert is_alive(before)
    assert not is_alive(replace(before, start_time=before.start_time - 1.0))


# the journal


def _noted(path: Path, *events: tuple[float, Any]) -> Path:
    store = Store(path / "engines.sqlite3", bounds=Bounds(age_s=86400.0))
    now_s = time.time()
    store.journal.note([Entry(event, now_s + at_s, "t", "e", "h:1") for at_s, event in events])
    store.close()
    return store.path


EVENTS = (
    (0.0, Attached("pid 1", "loopback://h:1", "default", "b", "0", 0)),
    (1.0, StateEntered("observed_serving", State.DETACHED, State.SERVING)),
    (2.0, CommandBegan("pause", State.SERVING)),
    (2.1, StateEntered("pause", State.SERVING, State.PAUSING)),
    (2.2, CallSent("pause()", "pause", (), True, 60.0, "b")),
    (2.3 - HOUR_S, StateEntered("succeeded", State.PAUSING, State.PAUSED)),
    (2.4 - HOUR_S, CommandEnded("pause", State.PAUSED, 0.4)),
)


def test_entries_stay_in_the_order_in_which_they_were_written(tmp_path: Path) -> None:
    entries = list(read_file(_noted(tmp_path, *EVENTS)))
    assert [entry.event for entry in entries] == [event for _, event in EVENTS]


def test_a_trace_has_no_negative_duration(tmp_path: Path) -> None:
    events = trace(read_file(_noted(tmp_path, *EVENTS)))["traceEvents"]
    spans = {event["name"]: event["dur"] for event in events if event["ph"] == "X"}
    assert set(spans) == {"serving", "pausing", "paused", "pause", "pause()"}
    assert min(spans.values()) >= 0
    assert spans["pause"] == pytest.approx(0.4e6, abs=2)
    assert spans["paused"] < HOUR_S * 1e6 + 1e7


def test_what_was_written_while_the_clock_stood_years_back_is_kept_with_what_is_beside_it(tmp_path: Path) -> None:
    (began, event), old = EVENTS[0], -10 * 86400.0
    path = _noted(tmp_path, (old, event), (began, event), (old, event), (began, event))
    assert [entry.number for entry in read_file(path)] == [2, 3, 4]


def test_where_all_is_too_old_none_is_kept(tmp_path: Path) -> None:
    event, old = EVENTS[0][1], -10 * 86400.0
    assert list(read_file(_noted(tmp_path, (old, event), (old, event)))) == []
