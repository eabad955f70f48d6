"""Where the journal or the store cannot be written: refused before a command, or a warning; and the bounds."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from journal_rig import driver, kinds, read
from rig import V1

from lifecycle import ConfigurationError, Fleet, GuardRefused, State
from lifecycle.core.calls import Call, Reply
from lifecycle.core.journal import BarrierReturned, CallSent, Entry, Refused
from lifecycle.core.lease import Driver, Lease, LeasedEngine, LeaseHeld, LeaseUse
from lifecycle.core.record import Record
from lifecycle.store.journal import Bounds
from lifecycle.store.leases import Leases
from lifecycle.store.reserve import Reserve, disk_is_full
from lifecycle.store.sqlite import Store
from lifecycle.testing import ScriptedAdapter

# a file that cannot be written


class Full(sqlite3.OperationalError):
    """What SQLite says of a full disk."""

    sqlite_errorcode = sqlite3.SQLITE_FULL


def fill(store: Store, more_pages: int = 0) -> None:
    """The file of this store cannot grow: SQLite says that the disk is full, as it does on a disk that is."""
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count={pages + more_pages}")


async def test_a_command_is_refused_where_no_room_is_left_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = ScriptedAdapter("e")
    engine = await driver(adapter, tmp_path).connect()

    def refuse(descriptor: int, begin: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "engines.sqlite3.reserve").unlink(missing_ok=True)
    monkeypatch.setattr("lifecycle.store.reserve.os.posix_fallocate", refuse)
    adapter.journal.clear()
    with pytest.raises(GuardRefused, match="No space left") as refused:
        await engine.pause()
    assert "4 MiB" in str(refused.value)
    assert adapter.journal.calls("e") == []
    assert engine.state is State.SERVING
    assert not (tmp_path / "engines.sqlite3.reserve").exists()


async def test_a_disk_that_fills_in_the_middle_stops_no_command(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = ScriptedAdapter("e")
    store = Store(tmp_path / "engines.sqlite3")
    engine = await driver(adapter, tmp_path, store=store).connect()
    await engine.pause()
    await engine.drain()
    save, full = store._save, Reserve(store.path).path

    def until_given_up(records: Mapping[str, Record]) -> None:
        (record,) = records.values()
        if full.exists() and record.state is State.RELEASING and record.uncertain.intent is not None:
            raise Full("database or disk is full")
        save(records)

    monkeypatch.setattr(store, "_save", until_given_up)
    with caplog.at_level(logging.WARNING, "lifecycle"):
        await engine.release(weights=V1)
    assert engine.state is State.RELEASED
    assert "the disk is full" in caplog.text
    assert not full.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 9 MiB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_real_disk_that_fills_in_the_middle_stops_no_command_and_refuses_the_next(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter, filling = ScriptedAdapter("e"), small_disk / "filling"
    engine = await driver(adapter, small_disk).connect()
    await engine.pause()
    await engine.drain()
    send = adapter.send

    async def fills(call: Call, *, deadline_s: float) -> Reply:
        if call.name == "release" and not filling.exists():
            with filling.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                while True:
                    file.write(b"x" * 4096)
            engine.journal.note(BarrierReturned())  # is written alone, at the next turn
        return await send(call, deadline_s=deadline_s)

    adapter.send = fills  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, "lifecycle"):
        await engine.release(weights=V1)
    assert engine.memory_is_free
    assert "what was reserved is used" in caplog.text
    assert "database or disk is full" in caplog.text, "the journal says what is wrong, and not what came of that"
    with pytest.raises(GuardRefused, match="no 4 MiB are left for the end of a command"):
        await engine.restore_weights()
    filling.unlink()
    await engine.restore_weights()
    await engine.aclose()
    calls = [each.event for each in read(small_disk) if isinstance(each.event, CallSent)]
    assert [call.command for call in calls if not call.repeatable] == ["release", "release", "restore_weights"]


@pytest.mark.parametrize("going_on", ["refuse", "warn"])
async def test_what_cannot_be_written_down_is_refused_or_warned_about_by_policy(
    going_on: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter, store = ScriptedAdapter("e"), Store(tmp_path / "engines.sqlite3")
    engine = await driver(adapter, tmp_path, store=store, policy={"unrecorded": going_on}).connect()
    store._db.execute("PRAGMA query_only=ON")
    with caplog.at_level(logging.WARNING, "lifecycle"):
        if going_on == "refuse":
            with pytest.raises(GuardRefused, match="could not be kept"):
                await engine.pause()
            assert engine.state is State.SERVING
        else:
            await Fleet([engine]).offload(weights=V1)
            assert engine.memory_is_free
            assert "could not be kept" in caplog.text
            assert caplog.text.count("the journal cannot be written") == 1


async def test_an_entry_that_cannot_be_encoded_breaks_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapter = ScriptedAdapter("e")
    engine = await driver(adapter, tmp_path).connect()
    engine.journal.note(Refused("pause", "Error", object()))  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, "lifecycle"):
        await engine.pause()
    await engine.aclose()
    assert engine.state is State.PAUSED
    assert "CommandEnded" in kinds(read(tmp_path))
    assert "Refused" in caplog.text


def test_the_disk_fills_while_a_lease_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leases, me, engine = Leases(tmp_path / "engines.sqlite3"), Driver("me", "me"), LeasedEngine("a:1")
    reserve = Reserve(leases.path)
    take = leases._take

    def until_given_up(*about: Any) -> list[Lease | LeaseHeld]:
        if reserve.path.exists():
            raise ConfigurationError("it cannot be written") from Full("database or disk is full")
        return take(*about)

    monkeypatch.setattr(leases, "_take", until_given_up)
    reserve.hold()
    assert leases.take(me, engine, LeaseUse("pause")).held
    reserve.hold()
    monkeypatch.setattr("lifecycle.store.leases.disk_is_full", lambda error: False)
    with pytest.raises(ConfigurationError, match="cannot be written"):
        leases.take(me, engine, LeaseUse("pause"))


async def test_no_more_than_so_many_entries_wait_for_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "engines.sqlite3")
    store._db.execute("PRAGMA query_only=ON")
    for begin in range(0, 30_000, 1000):
        store.journal.note(entry(number) for number in range(begin, begin + 1000))
        store.journal.flush()
    store._db.execute("PRAGMA query_only=OFF")
    store.journal.flush()
    assert [each.engine for each in read(tmp_path)] == [f"e{number}" for number in range(10_000)]


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (Full("database or disk is full"), True),
        (sqlite3.OperationalError("database is locked"), False),
        (OSError(28, "No space left on device"), True),
        (OSError(122, "Disk quota exceeded"), True),
        (OSError(13, "Permission denied"), False),
        (None, False),
    ],
)
def test_what_a_full_disk_is_told_by(error: Exception | None, full: bool) -> None:
    assert disk_is_full(error) is full


def test_the_reserve_is_made_once_and_is_real(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "engines.sqlite3", size_bytes=1 << 20)
    reserve.hold()
    status = reserve.path.stat()
    assert status.st_size == 1 << 20
    assert status.st_blocks * 512 >= 1 << 20, "a file with holes keeps nothing free"
    reserve.hold()
    assert reserve.path.stat().st_ino == status.st_ino
    assert reserve.give_up()
    assert not reserve.give_up()


# bounds


def entry(number: int, at_s: float | None = None) -> Entry:
    return Entry(Refused("pause", "Error", "x" * 1000), at_s or time.time(), "me", f"e{number}", "e")


def test_it_is_bounded_by_size(tmp_path: Path) -> None:
    store = Store(tmp_path / "engines.sqlite3", bounds=Bounds(size_bytes=1 << 20))
    for begin in range(0, 10_000, 500):
        store.journal.note(entry(number) for number in range(begin, begin + 500))
    kept = [each.engine for each in read(tmp_path)]
    assert kept[-1] == "e9999"
    assert 200 < len(kept) < 1500
    assert (tmp_path / "engines.sqlite3").stat().st_size < 4 << 20


def test_it_is_bounded_by_age(tmp_path: Path) -> None:
    store = Store(tmp_path / "engines.sqlite3", bounds=Bounds(age_s=3600.0))
    store.journal.note([entry(1, time.time() - 7200.0), entry(2, time.time() - 60.0)])
    assert [each.engine for each in read(tmp_path)] == ["e2"]
