"""Group commit: intents of engines that are ready in one turn are one transaction, and each is refused by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from group_rig import FILE, When, drained, kept, traced
from journal_rig import read
from rig import V1

from lifecycle import Engine, GuardRefused, State, Unreachable
from lifecycle.core.calls import Call, Reply
from lifecycle.core.journal import BarrierReturned, CallEnded, CallSent, Entry, Refused
from lifecycle.core.lease import Driver, LeasedEngine, LeaseUse
from lifecycle.core.record import Record
from lifecycle.engine import group_commit
from lifecycle.engine.group_commit import Sending, write_down
from lifecycle.store.journal import WAITS_S
from lifecycle.store.lease_table import LeaseTable
from lifecycle.store.leases import Leases
from lifecycle.store.sqlite import Store
from lifecycle.testing import ScriptedAdapter

SYNCED = "PRAGMA synchronous=FULL"


# one transaction


async def test_intents_that_are_ready_in_one_turn_are_one_synced_transaction(tmp_path: Path) -> None:
    leases = Leases(tmp_path / FILE)
    engines = await drained(tmp_path, "a", "b", "c", lease=leases)
    store = engines[0]._session.store
    assert isinstance(store, Store)
    rows = traced(store._db)
    with leases._file.asking() as db:
        changes = traced(db)
    await asyncio.gather(*(engine.release(weights=V1) for engine in engines))
    assert all(engine.memory_is_free for engine in engines)
    begin = [number for number, sql in enumerate(rows) if sql == SYNCED]
    assert len(begin) == 2, "one for each of the two calls of a release"
    for number in begin:
        assert rows[number + 1 : number + 5] == ["BEGIN IMMEDIATE", *["UPDATE engines"] * 3]
    assert changes.count("COMMIT") == 3 + 2 + 3, "each takes its lease and rests; and for each call once for all"


async def test_a_row_is_written_with_the_entries_of_its_edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifecycle.store.journal.WAITS_S", 60.0)
    (engine,) = await drained(tmp_path, "a")
    store = engine._session.store
    assert isinstance(store, Store)
    told = traced(store._db)
    await engine.release(weights=V1)
    rows = [told[at : told.index("COMMIT", at)] for at, sql in enumerate(told) if sql == "BEGIN IMMEDIATE"]
    row, entry = "UPDATE engines", "INSERT INTO"
    assert [rows[0][1:], rows[-1][1:]] == [[row, entry], [row, *[entry] * 3]], "it began; was answered, entered, ended"
    assert told[-1] == "COMMIT", "and nothing is left to write"
    assert [each.kind for each in read(tmp_path)][-3:] == ["CallEnded", "StateEntered", "CommandEnded"]


async def test_a_command_that_could_not_be_kept_entered_no_state(tmp_path: Path) -> None:
    (engine,) = await drained(tmp_path, "a")
    another = Store(tmp_path / FILE)
    another.load(engine._session.key)
    another.save(engine._session.key, engine.record)
    with pytest.raises(GuardRefused, match="could not be kept"):
        await engine.release(weights=V1)
    await engine.aclose()
    last = read(tmp_path)[-2:]
    assert [each.kind for each in last] == ["CommandBegan", "Refused"]


async def test_what_has_no_intent_is_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifecycle.store.journal.WAITS_S", 60.0)  # else a slow command takes one transaction more
    leases = Leases(tmp_path / FILE)
    (engine,) = await drained(tmp_path, "a", lease=leases)
    store = engine._session.store
    assert isinstance(store, Store)
    rows = traced(store._db)
    await engine.resume()
    await engine.pause()
    assert rows.count("COMMIT") == 6, "of each: it began, its call, its end"
    assert SYNCED not in rows
    with leases._file.asking() as db:
        assert db.execute("PRAGMA synchronous").fetchone() == (1,)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (1,)


async def test_a_transaction_that_fails_leaves_the_next_one_unsynced(tmp_path: Path) -> None:
    (engine,) = await drained(tmp_path, "a")
    store = engine._session.store
    assert isinstance(store, Store)
    store._db.execute("PRAGMA query_only=ON")
    sending = sent(engine, "release")
    assert await write_down(sending) is not None
    assert store._db.execute("PRAGMA synchronous").fetchone() == (1,)


def sent(engine: Engine, name: str) -> Sending:
    """The call of this name is about to be sent."""
    effect = {"release": {"mapped": {"weights": False}}, "pause": {"admission": "closed"}}[name]
    call = Call(name, {}, effect, repeatable=name == "pause")
    return Sending(engine._session, call, None, time.time(), time.time() + 60.0)


@pytest.mark.provokes_violation("repeated")
async def test_two_calls_of_one_engine_are_never_under_one_intent(tmp_path: Path, monkeypatch: Any) -> None:
    one, two = await drained(tmp_path, "one", "two")
    store = one._session.store
    assert isinstance(store, Store)
    saved: list[dict[str, str]] = []
    save = store._save

    def noted(records: Mapping[str, Record]) -> None:
        intents = {name: record.uncertain.intent for name, record in records.items()}
        saved.append({name: f"{intent.call} {intent.until_s:.0f}" for name, intent in intents.items() if intent})
        save(records)

    monkeypatch.setattr(store, "_save", noted)
    first, second = sent(one, "release"), replace(sent(one, "release"), until_s=7.0)
    unsent = await asyncio.gather(write_down(first), write_down(sent(two, "release")), write_down(second))
    assert unsent == [None, None, None]
    assert [sorted(each) for each in saved] == [["scripted://one", "scripted://two"], ["scripted://one"]]
    assert saved[1] == {"scripted://one": "release() 7"}


# each by itself


async def test_a_conflict_in_one_row_refuses_that_engine_alone(tmp_path: Path) -> None:
    def another_process_writes(name: str) -> None:
        if name == "b":
            store, key = Store(tmp_path / FILE), "scripted://b"
            record = store.load(key)
            assert record is not None
            store.save(key, record)

    observers = [When(State.RELEASING, another_process_writes)]
    a, b, c = await drained(tmp_path, "a", "b", "c", observers=observers)
    ended = await asyncio.gather(*(each.release(weights=V1) for each in (a, b, c)), return_exceptions=True)
    assert isinstance(ended[1], Unreachable)
    assert "not sent, since that could not be written down (another process moved scripted://b" in str(ended[1])
    assert "release" not in b.adapter.journal.calls()
    assert b.record.uncertain.intent is None
    assert a.memory_is_free
    assert c.memory_is_free


@pytest.mark.parametrize("freed", [False, True])
async def test_a_lease_that_was_lost_refuses_that_engine_alone(tmp_path: Path, freed: bool) -> None:
    """Also where the driver that took it has freed it since: what is known here is of before what that one did."""
    leases = Leases(tmp_path / FILE)
    other = Driver("other", "pid 9 on here")

    def loses(name: str) -> None:
        if name == "a":
            with leases._file.changing() as db:
                db.execute("UPDATE leases SET held = 0 WHERE address = 'scripted://a'")
            leases.take(other, LeasedEngine("scripted://a"), LeaseUse("offload", sends=True))
            if freed:
                leases.free(other, LeasedEngine("scripted://a"))

    a, b = await drained(tmp_path, "a", "b", lease=leases, observers=[When(State.RELEASING, loses)])
    ended = await asyncio.gather(a.release(weights=V1), b.release(weights=V1), return_exceptions=True)
    assert "the lease of the engine was lost; pid 9 on here has it for offload" in str(ended[0])
    assert "release" not in a.adapter.journal.calls()
    assert b.memory_is_free


async def test_a_holder_that_breaks_ends_the_command_of_its_own_engine_alone(tmp_path: Path) -> None:
    table, broken = LeaseTable(60.0), False

    def ask(what: str, **about: Any) -> Any:
        if broken and what == "take" and about["engine"].address == "scripted://a":
            raise RuntimeError("the actor died")
        return getattr(table, what)(**about)

    a, b = await drained(tmp_path, "a", "b", lease=ask)
    broken = True
    a._session.take, b._session.take = (lambda *_, **__: None,) * 2  # type: ignore[method-assign]
    ended = await asyncio.gather(a.release(weights=V1), b.release(weights=V1), return_exceptions=True)
    assert isinstance(ended[0], RuntimeError)
    assert "release" not in a.adapter.journal.calls()
    assert b.memory_is_free


class Ended(BaseException):
    """The process ends."""


async def test_what_ends_the_writing_of_a_group_ends_whoever_waits_for_it(tmp_path: Path, monkeypatch: Any) -> None:
    a, b = await drained(tmp_path, "a", "b")

    def ends(records: Mapping[str, Record]) -> None:
        raise Ended

    monkeypatch.setattr(a._session.store, "_save", ends)
    waiting = [asyncio.create_task(write_down(sent(each, "release"))) for each in (a, b)]
    done, pending = await asyncio.wait(waiting, timeout=20.0)
    assert not pending
    assert [type(each.exception()) for each in done] == [Ended, Ended]


# given up


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_what_is_given_up_before_its_call_is_sent_leaves_no_intent(tmp_path: Path, turns: int) -> None:
    """In the first two turns it is not in the group yet; in the third the group was written, and it is taken back."""
    loop, written = asyncio.get_running_loop(), []

    def give_up(left: int) -> None:
        if left:
            loop.call_soon(give_up, left - 1)
        else:
            written.append(a.record.uncertain.intent is not None)
            releasing.cancel()

    a, b = await drained(tmp_path, "a", "b", observers=[When(State.RELEASING, lambda e: e == "a" and give_up(turns))])
    releasing, other = asyncio.create_task(a.release(weights=V1)), asyncio.create_task(b.release(weights=V1))
    with pytest.raises(asyncio.CancelledError):
        await releasing
    await other
    assert written == [turns == 3]
    assert a.adapter.journal.calls() == []
    assert a.state is State.DRAINED, "nothing had been sent"
    assert a.record.uncertain.intent is kept(tmp_path, a).uncertain.intent is None
    assert not a.record.uncertain.needs_barrier
    assert b.memory_is_free
    await a.aclose()
    events = [each.event for each in read(tmp_path) if each.engine == "a"]
    calls = [each for each in events if isinstance(each, CallSent) and each.command == "release"]
    unsent = [each for each in events if isinstance(each, CallEnded) and each.outcome == "unsent"]
    assert len(calls) == len(unsent) == (turns == 3)


async def test_what_is_taken_back_is_saved_as_that(tmp_path: Path) -> None:
    (engine,) = await drained(tmp_path, "a")
    writing = asyncio.create_task(write_down(sent(engine, "release")))
    for _ in range(3):  # it begins; the turn of its own; the turn after it
        await asyncio.sleep(0)
    assert kept(tmp_path, engine).uncertain.intent is not None
    assert not writing.done()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert engine.record.uncertain.intent is kept(tmp_path, engine).uncertain.intent is None


# a process that is killed

_CHILD = """
import asyncio, os, signal, sys
from pathlib import Path
from lifecycle import Engine, FromDisk
from lifecycle.store.sqlite import Store
from lifecycle.testing import QUICK, ScriptedAdapter

class Killed(ScriptedAdapter):
    async def send(self, call, *, deadline_s):
        if call.name == "release":
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().send(call, deadline_s=deadline_s)

async def main():
    store = Store(Path(sys.argv[1]))
    adapters = [Killed(f"e{number}") for number in range(8)]
    engines = [Engine(each, policy=QUICK, probe=each.probe, store=store, lease=None) for each in adapters]
    for engine in engines:
        await engine.connect()
        await engine.pause()
        await engine.drain()
    await asyncio.gather(*(engine.release(weights=FromDisk("/models/step-1", "v1")) for engine in engines))

asyncio.run(main())
"""


def test_once_a_call_of_a_group_is_sent_the_intent_of_each_of_it_survives_sigkill(tmp_path: Path) -> None:
    child = subprocess.run([sys.executable, "-c", _CHILD, str(tmp_path / FILE)], cwd=os.getcwd(), check=False)
    assert child.returncode == -signal.SIGKILL
    known = Store(tmp_path / FILE).known()
    assert sorted(known) == [f"scripted://e{number}" for number in range(8)]
    for record in known.values():
        assert record.state is State.RELEASING
        assert record.uncertain.intent is not None
        assert record.uncertain.intent.call == "release(tags=['kv_cache'])"
    calls = [each.engine for each in read(tmp_path) if isinstance(each.event, CallSent) and not each.event.repeatable]
    assert sorted(calls) == [f"scripted://e{number}" for number in range(8)]


# stores and holders without transactions for several


class Rows:
    """A store of somebody else's."""

    def __init__(self) -> None:
        self.rows: dict[str, Record] = {}

    def save(self, engine: str, record: Record) -> None:
        self.rows[engine] = record

    def load(self, engine: str) -> Record | None:
        return self.rows.get(engine)


async def test_a_store_without_transactions_is_written_at_once(tmp_path: Path, monkeypatch: Any) -> None:
    rows, seen = Rows(), []
    a, b = await drained(tmp_path, "a", "b", store=rows)
    monkeypatch.delattr(group_commit, "_Group")

    async def send(self: ScriptedAdapter, call: Call, *, deadline_s: float) -> Reply:
        intent = rows.rows[self.url].uncertain.intent
        seen.append(None if intent is None else intent.call)
        return await original(self, call, deadline_s=deadline_s)

    original = ScriptedAdapter.send
    monkeypatch.setattr(ScriptedAdapter, "send", send)
    await asyncio.gather(a.release(weights=V1), b.release(weights=V1))
    assert seen == ["release(tags=['kv_cache'])"] * 2 + ["release(tags=['weights'])"] * 2


# entries


async def test_the_entry_of_a_call_without_an_intent_is_written_before_it_is_sent_beside_a_group_too(
    tmp_path: Path,
) -> None:
    a, b = await drained(tmp_path, "a", "b")
    noted: list[bool] = []

    async def of_b() -> None:
        await write_down(sent(b, "pause"))
        noted.append(isinstance(read(tmp_path)[-1].event, CallSent) and read(tmp_path)[-1].engine == "b")

    await asyncio.gather(write_down(sent(a, "release")), of_b())
    assert noted == [True]


async def test_what_was_noted_before_a_group_is_written_with_its_rows(tmp_path: Path) -> None:
    """Where no row follows after all, it is written too."""
    (engine,) = await drained(tmp_path, "a")
    store = engine._session.store
    assert isinstance(store, Store)
    rows = traced(store._db)
    await engine.release(weights=V1)
    first = rows.index(SYNCED)
    before = rows[max(number for number, sql in enumerate(rows[:first]) if sql == "BEGIN IMMEDIATE") : first]
    assert "UPDATE engines" in before, "the row of the command that begins, and no transaction of entries after it"
    waiting = asyncio.create_task(write_down(sent(engine, "release")))
    await asyncio.sleep(0)
    for turns in (3, 1):  # with the group, which has no row after all; and at the next turn, as ever after it
        engine._session.journal.note(BarrierReturned())
        waiting.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        assert isinstance(read(tmp_path)[-1].event, BarrierReturned)
        engine._session.journal.note(Refused("pause", "Error", "of the test"))
        engine._session.journal.flush()
    assert waiting.cancelled()


def test_an_entry_that_waits_for_a_row_is_written_without_one(tmp_path: Path) -> None:
    """Also where the loop in which one waited before has ended."""
    store = Store(tmp_path / FILE)

    async def noted(engine: str, *, until_written: bool) -> None:
        store.journal.note([Entry(BarrierReturned(), time.time(), "t", engine, "h:1")], with_row=True)
        await asyncio.sleep(0)
        assert not read(tmp_path)
        deadline_s = time.monotonic() + 10.0
        while until_written and not read(tmp_path):
            assert time.monotonic() < deadline_s
            await asyncio.sleep(WAITS_S)

    asyncio.run(noted("first", until_written=False))
    time.sleep(WAITS_S)  # what is due by then was to be written by a loop that is no more
    asyncio.run(noted("second", until_written=True))
    assert [each.engine for each in read(tmp_path)] == ["first", "second"]
