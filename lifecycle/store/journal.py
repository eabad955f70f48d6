"""The journal in SQLite: a table of entries beside what is known of engines, in the same file.

Entries are buffered until the next turn of the event loop, or where that was said until a row is saved, for a
moment at most, and written together. What has to be on disk before a call is sent is written with the record that
names the call, in its transaction (`Store.save`). Such a transaction is synced; entries alone are not: they survive the
end of the process, and the last of them may be lost where the host loses power.

The table is bounded by age and by size. Readers see what was written last, and never wait for a writer.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..core.encoding import decode, encode
from ..core.journal import EVENTS, JOURNAL_FORMAT, NEVER_S, Entry, Event
from ..core.json_text import JsonWriter
from ..core.units import MIB
from .reading import UnreadableJournal, opened

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS journal (number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, "
    "driver TEXT NOT NULL, engine TEXT NOT NULL, key TEXT NOT NULL, kind TEXT NOT NULL, event TEXT NOT NULL, "
    "format INTEGER NOT NULL)"
)
_INSERT = "INSERT INTO journal (at, driver, engine, key, kind, event, format) VALUES (?, ?, ?, ?, ?, ?, ?)"
_SELECT = "SELECT number, at, driver, engine, key, kind, event, format FROM journal"

_events = JsonWriter()

_log = logging.getLogger("lifecycle")


#: Entries between two looks at the bounds.
_PRUNE_EVERY = 1000

#: Seconds for which an entry waits at most for the row that is saved next.
WAITS_S = 0.1

#: The most that is buffered while the file cannot be written; what comes after it is dropped.
_MOST_BUFFERED = 10_000


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a journal keeps: entries younger than `age_s` seconds, while its file uses less than `size_bytes`."""

    age_s: float = 14 * 86400.0
    size_bytes: int = 64 * MIB


class Journal:
    """The entries of one SQLite file, through the connection of its `Store`."""

    def __init__(self, db: sqlite3.Connection, path: Path, lock: threading.RLock, bounds: Bounds) -> None:
        self.path = path
        self._db = db
        self._lock = lock
        self._bounds = bounds
        self._buffer: list[tuple[Any, ...]] = []
        self._until_pruned = 0
        self._scheduled = False
        self._due_s = 0.0
        self._failing = False
        self._row_comes = False

    def note(self, entries: Iterable[Entry], *, with_row: bool = False) -> None:
        """These entries are written at the next turn of the event loop; at once where none runs.

        `with_row`: a row is saved soon that says more than they do; they are written with it, or after `WAITS_S`.
        """
        with self._lock:
            for entry in entries:
                try:
                    self._buffer.append(_row(entry))
                except TypeError as error:
                    _log.warning("%s: an entry (%s) cannot be written: %s", self.path, entry.kind, error)
            if self._scheduled:
                return
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                self.flush()
                return
            if not with_row:
                loop.call_soon(self._turn_ended)
                self._scheduled = True
            elif self._due_s <= (now_s := time.monotonic()):
                loop.call_later(WAITS_S, self.flush)
                self._due_s = now_s + WAITS_S

    def row_comes(self) -> None:
        """A row is about to be saved, with which what was noted is written: `flush` is called after it."""
        self._row_comes = True

    def _turn_ended(self) -> None:
        if self._row_comes:
            self._scheduled = False
        else:
            self.flush()

    def flush(self) -> None:
        """What was noted is written. Where that fails it is logged once, and tried again with the next entries."""
        with self._lock:
            self._scheduled = self._row_comes = False
            if not self._buffer:
                return
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    self.write_within()
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:  # a full disk has ended it already
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                self._failed(error)
            else:
                self.written()

    def write_within(self) -> None:
        """What was noted is written in the transaction that is open; `written` is called once that was committed."""
        self._db.executemany(_INSERT, self._buffer)

    def written(self) -> None:
        """What was noted was committed."""
        self._until_pruned -= len(self._buffer)
        self._buffer.clear()
        self._failing = False
        if self._until_pruned <= 0:
            self._until_pruned = _PRUNE_EVERY
            try:
                self._prune()
            except sqlite3.Error as error:
                self._failed(error)

    def _failed(self, error: sqlite3.Error) -> None:
        lost = len(self._buffer) - _MOST_BUFFERED
        if lost > 0:
            del self._buffer[_MOST_BUFFERED:]
        if not self._failing:
            _log.warning("%s: the journal cannot be written (%s); the work goes on, and is not in it", self.path, error)
        self._failing = True

    def _prune(self) -> None:
        """What is too old, or too much, is deleted, the oldest first. Freed pages are used again.

        What was written before any entry that is young enough is too old: by its number, since clocks are set.
        """
        young = "SELECT MIN(number) FROM journal WHERE at >= ?"
        (first,) = self._db.execute(young, (time.time() - self._bounds.age_s,)).fetchone()
        self._db.execute("DELETE FROM journal WHERE number < coalesce(?, number + 1)", (first,))
        while self._used_bytes() > self._bounds.size_bytes:
            first, last = self._db.execute("SELECT MIN(number), MAX(number) FROM journal").fetchone()
            if first is None or first == last:
                return
            self._db.execute("DELETE FROM journal WHERE number <= ?", (first + (last - first) // 10,))

    def _used_bytes(self) -> int:
        pages, free, size = (
            self._db.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)


#: How an SQLite file begins.
_MAGIC = b"SQLite format 3\0"


def read_file(path: Path, *, others: list[str] | None = None) -> Iterator[Entry]:
    """The entries of a journal from any machine: an SQLite file, or the lines that `lifecycle history --json` prints.

    UnreadableJournal says what cannot be read. An entry of another format is left out and named in `others`, if given.
    """
    try:
        if is_sqlite(path):
            return _of_sqlite(path, others)
        return _of_lines(path.open("rb"), path, others)
    except OSError as error:
        raise UnreadableJournal(f"{path}: {error.strerror or error}") from error


def is_sqlite(path: Path) -> bool:
    """Whether it is an SQLite file, or a part of one. Raises OSError where there is no file.

    SQLite itself is asked: where this process has the file open already, to open and close it beside SQLite would give
    up the locks of the process, and another process could then write over what this one writes.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return False
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)) as db:
            db.execute("SELECT 1 FROM sqlite_master")
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_NOTADB:
            return True
    else:
        return True
    with path.open("rb") as file:  # SQLite has not opened it: it may be damaged, or no database at all
        return file.read(len(_MAGIC)) == _MAGIC


def read_kind(path: Path, kind: str) -> list[Entry]:
    """The entries of this kind in a journal in SQLite."""
    with closing(opened(path)) as db:
        try:
            rows = db.execute(f"{_SELECT} WHERE kind = ? ORDER BY number", (kind,)).fetchall()
        except sqlite3.Error as error:
            raise UnreadableJournal(f"{path}: no journal can be read there: {error}") from error
    return [entry_of(row, str(path)) for row in rows]


def has_journal(path: Path) -> bool:
    """False where no driver has written there yet: there is no file, or it is of a version that kept no journal."""
    if not path.exists():
        return False
    db = opened(path)
    try:
        return bool(db.execute("SELECT 1 FROM sqlite_master WHERE name = 'journal'").fetchone())
    except sqlite3.Error:
        return True  # whoever reads it says what is wrong
    finally:
        db.close()


def follow_file(path: Path, *, poll_s: float = 0.2, ends: Callable[[], bool] = lambda: False) -> Iterator[Entry]:
    """The entries of a journal in SQLite, and then those that are written, by any process, until `ends` says so.

    It is waited for where there is none yet.
    """
    while not has_journal(path):
        if ends():
            return
        time.sleep(poll_s)
    db = opened(path)
    try:
        last = 0
        while not ends():
            for row in _rows(db, path, last):
                last = row[0]
                yield entry_of(row, str(path))
                if ends():
                    return
            time.sleep(poll_s)
    finally:
        db.close()


def to_line(entry: Entry) -> str:
    """The entry as one line of JSON."""
    head = {"format": JOURNAL_FORMAT, "number": entry.number, "at_s": entry.at_s, "driver": entry.driver}
    return json.dumps({**head, "engine": entry.engine, "key": entry.key, **encode(entry.event)})


def entry_of(row: Sequence[Any], where: str) -> Entry:
    """The entry of a row of the table."""
    number, at_s, driver, engine, key, kind, event, found = row
    at = f"{where}, entry {number}"
    return _entry(_event(kind, event, found, at), at_s, (driver, engine, key), number, at)


def _of_sqlite(path: Path, others: list[str] | None) -> Iterator[Entry]:
    with closing(opened(path)) as db:
        for row in _rows(db, path, 0):
            if not _left_out(row[-1], f"{path}, entry {row[0]}", others):
                yield entry_of(row, str(path))


def _rows(db: sqlite3.Connection, path: Path, after: int) -> list[tuple[Any, ...]]:
    """All are read at once: a reader that waits in the middle would keep the file from being pruned."""
    try:
        return db.execute(f"{_SELECT} WHERE number > ? ORDER BY number", (after,)).fetchall()
    except sqlite3.Error as error:
        raise UnreadableJournal(f"{path}: no journal can be read there: {error}") from error


def _of_lines(file: IO[bytes], path: Path, others: list[str] | None) -> Iterator[Entry]:
    with io.TextIOWrapper(file, encoding="utf-8", errors="replace") as text:
        for number, line in enumerate(text, 1):
            if line.strip():
                yield from _of_line(line, f"{path}, line {number}", others)


def _of_line(line: str, where: str, others: list[str] | None) -> Iterator[Entry]:
    try:
        data = json.loads(line)
        kind, found = data["type"], data["format"]
        at_s, number = float(data["at_s"]), data.get("number")
        names = [data[part] for part in ("driver", "engine", "key")]
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise UnreadableJournal(f"{where}: it is no entry of a journal ({type(error).__name__}: {error})") from error
    if not _left_out(found, where, others):
        yield _entry(_event(kind, data, found, where), at_s, names, number, where)


def _entry(event: Event, at_s: Any, names: Sequence[Any], number: Any, where: str) -> Entry:
    """An entry of these parts, each of which is what it should be."""
    if not all(isinstance(name, str) for name in names) or not isinstance(number, int | None):
        raise UnreadableJournal(f"{where}: it is no entry of a journal (its names are no strings)")
    if not isinstance(at_s, float) or not 0 <= at_s < NEVER_S:
        raise UnreadableJournal(f"{where}: it is no entry of a journal (at_s {at_s!r:.60} is no time)")
    driver, engine, key = names
    return Entry(event, at_s, driver, engine, key, number)


def _left_out(found: Any, where: str, others: list[str] | None) -> bool:
    """Whether another version of this library wrote an entry, which is then named in `others`, or else raised."""
    if found == JOURNAL_FORMAT:
        return False
    why = f"{where}: it has format {found}, and this version reads {JOURNAL_FORMAT}"
    why += "; the version of this library that wrote it reads it, and nothing is lost"
    if others is None:
        raise UnreadableJournal(why)
    others.append(why)
    return True


def _event(kind: Any, data: Any, found: Any, where: str) -> Event:
    _left_out(found, where, None)
    if not isinstance(kind, str) or kind not in EVENTS:
        raise UnreadableJournal(f"{where}: {kind!r:.60} is no kind of entry")
    try:
        values = json.loads(data) if isinstance(data, str) else data
        event: Event = decode(EVENTS[kind], {**values, "type": kind})
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise UnreadableJournal(f"{where}: it is damaged ({error})") from error
    return event


def _row(entry: Entry) -> tuple[Any, ...]:
    text = _events.fields(entry.event)
    return entry.at_s, entry.driver, entry.engine, entry.key, entry.kind, text, JOURNAL_FORMAT
