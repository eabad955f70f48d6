"""The journal: what is on disk before a call is sent, what is written of a command, and how it is read."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from journal_rig import driver, kinds, read
from rig import V1

from lifecycle import Fleet, InvalidTransition, OperationFailed, Process, State
from lifecycle.core.calls import Call, Reply
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.errors import NothingListens
from lifecycle.core.journal import (
    EVENTS,
    Attached,
    BarrierReturned,
    CallEnded,
    CallSent,
    CommandBegan,
    CommandEnded,
    Entry,
    HandedOver,
    MovePhase,
    Quarantined,
    Refused,
    StateEntered,
)
from lifecycle.core.lease import Driver, Lease, LeasedEngine, LeaseHeld, LeaseUse
from lifecycle.nodes.processes import by_pid
from lifecycle.store.journal import read_file, to_line
from lifecycle.store.leases import Leases
from lifecycle.store.reading import UnreadableJournal
from lifecycle.store.sqlite import Store
from lifecycle.testing import HANG, LOST, ScriptedAdapter

# before a call


async def test_every_call_that_cannot_be_repeated_is_on_disk_before_it_is_sent(tmp_path: Path) -> None:
    adapter = ScriptedAdapter("e")
    engine = await driver(adapter, tmp_path).connect()
    send, unrepeatable = adapter.send, 0

    async def looked(call: Call, *, deadline_s: float) -> Reply:
        nonlocal unrepeatable
        if not call.repeatable:
            unrepeatable += 1
            last = read(tmp_path)[-1].event  # another connection, which sees what was committed
            assert isinstance(last, CallSent)
            assert (last.call, last.repeatable) == (str(call), False)
            assert last.until_s == pytest.approx(time.time() + deadline_s, abs=1.0)
            assert last.boot == engine.facts.boot
        return await send(call, deadline_s=deadline_s)

    adapter.send = looked  # type: ignore[method-assign]
    await Fleet([engine]).offload(weights=V1)
    await Fleet([engine]).onload()
    assert unrepeatable == 4, "two calls of the release, and one of each restore"


async def test_a_call_that_changes_no_fact_and_cannot_be_repeated_is_on_disk_too(tmp_path: Path) -> None:
    from lifecycle.engine.call import send

    adapter = ScriptedAdapter("e")
    engine = await driver(adapter, tmp_path).connect()
    seen: list[list[str]] = []

    async def looked(call: Call, *, deadline_s: float) -> Reply:
        seen.append(kinds(read(tmp_path)))
        return Reply("done")

    adapter.send = looked  # type: ignore[method-assign]
    await send(engine._session, Call("push_tensor"), deadline_s=1.0)
    assert seen[0][-1] == "CallSent"


async def test_a_command_is_written_from_its_claim_to_its_end(tmp_path: Path) -> None:
    adapter = ScriptedAdapter("e")
    engine = await driver(adapter, tmp_path).connect()
    await engine.pause()
    await engine.aclose()
    entries = read(tmp_path)
    assert kinds(entries) == [
        "Attached",
        "StateEntered",
        "CommandBegan",
        "StateEntered",
        "CallSent",
        "CallEnded",
        "StateEntered",
        "CommandEnded",
    ]
    attached, _, began, via, sent, ended, entered, over = (entry.event for entry in entries)
    assert isinstance(attached, Attached)
    assert (attached.boot, attached.url) == (engine.facts.boot, adapter.url)
    assert began == CommandBegan("pause", State.SERVING)
    assert isinstance(via, StateEntered)
    assert (via.source, via.dest) == (State.SERVING, State.PAUSING)
    assert isinstance(sent, CallSent)
    assert (sent.command, sent.repeatable) == ("pause", True)
    assert isinstance(ended, CallEnded)
    assert (ended.call, ended.outcome) == (sent.call, "done")
    assert isinstance(entered, StateEntered)
    assert set(entered.verdicts) == {"admission_closed"}
    assert isinstance(over, CommandEnded)
    assert (over.state, over.error) == (State.PAUSED, "")
    assert {entry.driver for entry in entries} == {engine._session.owner.driver.token}
    assert [entry.number for entry in entries] == list(range(1, 9))


async def test_who_only_looks_writes_nothing_and_who_recovers_does(tmp_path: Path) -> None:
    adapter = ScriptedAdapter("e")
    for _ in range(2):
        looking = await driver(adapter, tmp_path).connect()
        await looking.verify()
        await looking.aclose()
    assert read(tmp_path) == []
    engine = await driver(adapter, tmp_path).connect()
    await engine.recover()
    await engine.aclose()
    assert kinds(read(tmp_path)) == ["Attached", "StateEntered", "StateEntered", "StateEntered"]


async def test_who_asked_an_engine_that_was_gone_by_then_is_written_and_who_only_looked_is_not(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    adapter = ScriptedAdapter("e")

    async def processes() -> tuple[Process, ...]:
        return (here,)

    async def nobody(*, deadline_s: float) -> Capabilities:
        raise NothingListens("nothing listens there")

    here = by_pid(process.pid)
    adapter.engine.pid = process.pid
    adapter.processes = processes  # type: ignore[method-assign]
    await (await driver(adapter, tmp_path).connect()).aclose()
    process.kill()
    await process.wait()
    adapter.connect = nobody  # type: ignore[method-assign]
    looks = await driver(adapter, tmp_path).connect()
    assert looks.state is State.GONE
    await looks.aclose()
    assert read(tmp_path) == []
    asks = await driver(adapter, tmp_path).connect()
    with pytest.raises(InvalidTransition):
        await asks.pause()
    await asks.aclose()
    entries = read(tmp_path)
    assert kinds(entries) == ["Attached", "StateEntered", "Refused"]
    attached = entries[0].event
    assert isinstance(attached, Attached)
    assert (attached.who, attached.url) == (asks._session.owner.driver.who, adapter.url)


async def test_a_refusal_a_failure_and_a_barrier_are_written(tmp_path: Path) -> None:
    adapter = ScriptedAdapter("e")
    engine = await driver(adapter, tmp_path).connect()
    with pytest.raises(Exception, match="allowed here"):
        await engine.release(weights=V1)
    adapter.script("pause", LOST)
    with pytest.raises(OperationFailed):
        await engine.pause()
    await engine.aclose()
    events = [entry.event for entry in read(tmp_path)]
    assert isinstance(events[2], Refused)
    assert (events[2].command, events[2].error) == ("release", "InvalidTransition")
    lost = next(event for event in events if isinstance(event, CallEnded))
    assert lost.outcome == "lost"
    assert events.index(BarrierReturned()) > events.index(lost)
    over = events[-1]
    assert isinstance(over, CommandEnded)
    assert over.error == "Unreachable"
    assert "pause" in over.reason


async def test_a_call_that_its_caller_gave_up_has_no_known_answer(tmp_path: Path) -> None:
    adapter = ScriptedAdapter("e")
    engine = await driver(adapter, tmp_path).connect()
    adapter.script("pause", HANG)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await engine.pause()
    await engine.aclose()
    assert [each.event.outcome for each in read(tmp_path) if isinstance(each.event, CallEnded)] == ["unknown"]


async def test_a_move_its_phases_and_the_hand_over_are_written_once_for_all_engines(tmp_path: Path) -> None:
    store = Store(tmp_path / "engines.sqlite3")
    engines = [await driver(ScriptedAdapter(name), tmp_path, store=store).connect() for name in ("a", "b")]
    await Fleet(engines).offload(weights=V1)
    store.close()
    moves = [entry.event for entry in read(tmp_path) if isinstance(entry.event, MovePhase)]
    assert [(move.phase, move.duration_s is None) for move in moves] == [
        ("", True),
        *[(phase, begins) for phase in ("pause", "drain", "release") for begins in (True, False)],
        ("", False),
    ]
    tokens = {engine._session.owner.driver.token for engine in engines}
    assert all(set(move.drivers) == tokens for move in moves)
    (over,) = [entry.event for entry in read(tmp_path) if isinstance(entry.event, HandedOver)]
    assert set(over.returned) == tokens
    assert over.move_id == moves[0].move_id


async def test_the_number_of_a_lease_goes_with_every_call_and_grows_with_the_next_driver(tmp_path: Path) -> None:
    adapter, leases = ScriptedAdapter("e"), [Leases(tmp_path / "leases") for _ in range(2)]
    first = await driver(adapter, tmp_path, lease=leases[0]).connect()
    await first.pause()
    await first.resume()
    second = await driver(adapter, tmp_path, lease=leases[1]).connect()
    await second.pause()
    await second.aclose()
    calls = [(entry.driver, entry.event.fence) for entry in read(tmp_path) if isinstance(entry.event, CallSent)]
    numbers = {token: {fence for each, fence in calls if each == token} for token, _ in calls}
    one, two = (numbers[each._session.owner.driver.token] for each in (first, second))
    assert max(one) < min(two)
    assert min(one) > 0


async def test_what_was_done_under_a_lease_is_on_disk_before_another_can_have_it(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    class Looks(Leases):
        def free(self, driver: Driver, engine: LeasedEngine) -> None:
            seen.append(kinds(read(tmp_path)))
            super().free(driver, engine)

    engine = await driver(ScriptedAdapter("e"), tmp_path, lease=Looks(tmp_path / "leases")).connect()
    await engine.pause()
    await engine.resume()
    assert [found[-2:] for found in seen] == [["StateEntered", "CommandEnded"]]
    assert seen[0].count("CallEnded") == seen[0].count("CallSent") > 1
    await engine.pause()
    await engine.aclose()
    assert seen[-1][-1] == "CommandEnded"


async def test_a_driver_whose_lease_another_has_taken_stops_before_its_next_call(tmp_path: Path) -> None:
    class Takes:
        """A holder that gave the lease to another driver meanwhile, as one with leases that expire does."""

        def __init__(self) -> None:
            self.lease: Lease | None = None

        def take(self, driver: Driver, engine: LeasedEngine, use: LeaseUse) -> Lease:
            if self.lease is not None and self.lease.token != driver.token:
                raise LeaseHeld(self.lease)
            self.lease = Lease(driver.token, driver.who, use.what, True, time.time(), uses=1)
            return self.lease

        def free(self, driver: Driver, engine: LeasedEngine) -> None:
            self.lease = None

        def seen(self, engine: LeasedEngine) -> Lease | None:
            return self.lease

    holder, adapter = Takes(), ScriptedAdapter("e")
    engine = await driver(adapter, tmp_path, lease=holder).connect()
    await engine.pause()
    await engine.drain()
    adapter.journal.clear()
    holder.lease = Lease("other", "another driver", "pause", True, time.time(), uses=2)
    with pytest.raises(Exception, match="another driver"):
        await engine.resume()
    assert adapter.journal.calls("e") == []
    with pytest.raises(LeaseHeld):  # also a call that may be repeated, after the first under this lease
        engine._session.owner.sends(engine.facts.boot, None)


# reading


AT_S = time.time()


def every_event() -> list[Entry]:
    from lifecycle.core.facts import Grade
    from lifecycle.core.verdicts import Proved

    proved = Proved(grade=Grade.MEASURED, figures={"returned_bytes": 5})
    return [
        Entry(event, AT_S, "me", "e", "a:1", number)
        for number, event in enumerate(
            [
                Attached("pid 1", "sglang://a:1", "default", "boot", "0.1", 5, {"idle": Grade.REPORTED}),
                CommandBegan("pause", State.SERVING),
                Refused("pause", "GuardRefused", "no"),
                CallSent("pause()", "pause", ("admission",), True, 2.5, "boot", 7, 3),
                CallEnded("pause()", "rejected", 400, "no", 0.5),
                BarrierReturned(),
                StateEntered("succeeded", State.PAUSING, State.PAUSED, "pause", "", 0.1, {"idle": proved}, proved),
                CommandEnded("pause", State.PAUSED, 0.2),
                MovePhase("offload", "m", "pause", ("me",), ("e",), 0.5),
                Quarantined("offload", "m", "you", "f", "no", False, True, ("gpu-1",), ("gpu-0",)),
                HandedOver("m", {"me": proved}, ("you",)),
            ],
            1,
        )
    ]


def test_every_kind_of_entry_comes_back_from_the_file_and_from_lines(tmp_path: Path) -> None:
    entries = every_event()
    assert {each.kind for each in entries} == set(EVENTS)
    store = Store(tmp_path / "engines.sqlite3")
    store.journal.note(entries)
    assert list(read_file(store.path)) == entries
    lines = tmp_path / "journal.jsonl"
    lines.write_text("\n".join(to_line(each) for each in entries) + "\n")
    assert list(read_file(lines)) == entries


def _other_format(line: str) -> str:
    return line.replace('"format": 1', '"format": 7')


def _no_such_kind(line: str) -> str:
    return line.replace('"CommandBegan"', '"Began"')


def _no_such_state(line: str) -> str:
    return line.replace('"serving"', '"asleep"')


def _half(line: str) -> str:
    return line[: len(line) // 2]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_other_format, "line 2: it has format 7, and this version reads 1"),
        (_no_such_kind, "line 2: 'Began' is no kind of entry"),
        (_no_such_state, "line 2: it is damaged"),
        (_half, "line 2: it is no entry of a journal"),
        (lambda line: "[1, 2]", "line 2: it is no entry of a journal"),
        (lambda line: "[" * 100_000, "line 2: it is no entry of a journal"),
        (lambda line: line.replace('"me"', "5"), "line 2: it is no entry of a journal"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(damage: Callable[[str], str], words: str, tmp_path: Path) -> None:
    lines = [to_line(each) for each in every_event()]
    lines[1] = damage(lines[1])
    path = tmp_path / "journal.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(UnreadableJournal) as unreadable:
        list(read_file(path))
    assert words in str(unreadable.value)


def test_a_row_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "engines.sqlite3")
    store.journal.note(every_event())
    store._db.execute("UPDATE journal SET event = '{}' WHERE number = 2")
    with pytest.raises(UnreadableJournal, match=r"entry 2: it is damaged .*command is missing"):
        list(read_file(store.path))
    store._db.execute("UPDATE journal SET format = 9 WHERE number = 1")
    with pytest.raises(UnreadableJournal, match="entry 1: it has format 9"):
        list(read_file(store.path))


def test_what_is_no_journal_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnreadableJournal, match="No such file"):
        list(read_file(tmp_path / "none"))
    other = tmp_path / "other.sqlite3"
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE t (x)")
    db.commit()
    db.close()
    with pytest.raises(UnreadableJournal, match="no such table: journal"):
        list(read_file(other))
    (tmp_path / "damaged").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    with pytest.raises(UnreadableJournal, match="no journal can be read there"):
        list(read_file(tmp_path / "damaged"))


async def test_it_is_read_while_it_is_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "engines.sqlite3")
    store._db.execute("BEGIN IMMEDIATE")  # a writer in the middle of a transaction
    store._db.execute("INSERT INTO journal (at, driver, engine, key, kind, event, format) VALUES (1,'','','','','',1)")
    begun = time.monotonic()
    assert read(tmp_path) == []
    assert time.monotonic() - begun < 1.0
