"""What is known of engines, kept across processes: one SQLite file, one row an engine.

Of a process that cannot tell what was released (no SGLang endpoint does) only whoever released it knows. Facts are
about one boot and are believed for that boot only. A row is written before an engine is touched and after every edge;
a command that was under way when its process ended leaves its targets unknown.

What was committed survives the end of the process. A transaction with an intent is synced, and survives a loss of power
too, with all that was committed before it: the engine may be on another host, and go on with what it was sent.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from ..core.errors import ConfigurationError
from ..core.record import Record
from ..core.states import State
from ..nodes.state_folder import in_state_folder, state_folder
from . import journal
from .codec import Rows, UnreadableRow, from_text
from .journal import Bounds, Journal
from .reading import in_memory
from .reserve import Reserve, disk_is_full

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS engines "
    "(url TEXT PRIMARY KEY, boot TEXT, known TEXT NOT NULL, generation INTEGER NOT NULL, at REAL NOT NULL)"
)
_UPDATE = "UPDATE engines SET boot = ?, known = ?, generation = generation + 1, at = ? WHERE url = ? AND generation = ?"
_INSERT = "INSERT OR IGNORE INTO engines (boot, known, generation, at, url) VALUES (?, ?, 1, ?, ?)"


class WriteConflict(Exception):
    """Another process wrote the row of this engine since it was read here: what is known here is old."""


def default_path() -> Path:
    """The file of this user: `$LIFECYCLE_STATE_DIR`, else the XDG state folder.

    Raises ConfigurationError where that begins with the home of a user who has none (`~nouser`).
    """
    try:
        return in_state_folder("engines.sqlite3")
    except RuntimeError as error:
        raise _unusable(Path(state_folder()), error) from error


class Store:
    """The SQLite file (a `StateStore`). Several processes may have it open; the later of two writers is refused.

    `journal` is beside the rows, in the same file: what was noted there is written with the next row. With `reads_only`
    the file is read once, and what is saved is in memory alone.
    """

    def __init__(self, path: Path | None = None, *, bounds: Bounds | None = None, reads_only: bool = False) -> None:
        self.path = path or default_path()
        self._generations: dict[str, int] = {}
        self._rows = Rows()
        self._lock = threading.RLock()
        self._reserve = Reserve(self.path)
        try:
            self._db = in_memory(self.path) if reads_only else self._opened()
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")  # survives the end of the process, whatever ends it
            self._db.execute(_SCHEMA)
            self._db.execute(journal.SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise _unusable(self.path, error) from error
        self.journal = Journal(self._db, self.path, self._lock, bounds or Bounds())

    def _opened(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return sqlite3.connect(self.path, isolation_level=None, timeout=5.0, check_same_thread=False)

    def ready(self) -> None:
        """A command that begins now can be written down to its end. Raises OSError where the disk is too full."""
        self._reserve.hold()

    def save(self, engine: str, record: Record) -> None:
        """The row of this engine says what is known now; an engine never observed has none. Raises WriteConflict.

        Where the disk is full in the middle of a command, what was reserved for that is given up.
        """
        self.save_all({engine: record})

    def save_all(self, records: Mapping[str, Record]) -> None:
        """As `save`, of several engines in one transaction: where it raises, none of the rows was written."""
        observed = {
            engine: record
            for engine, record in records.items()
            if record.facts.boot is not None or record.state is State.GONE
        }
        if not observed:
            return
        try:
            self._save(observed)
        except sqlite3.Error as error:
            if not disk_is_full(error) or not self._reserve.give_up():
                raise
            self._save(observed)

    def _save(self, records: Mapping[str, Record]) -> None:
        synced = any(record.uncertain.intent is not None for record in records.values())
        with self._lock, self._synced() if synced else nullcontext():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for engine, record in records.items():
                    self._write(engine, record)
                self.journal.write_within()
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            for engine in records:
                self._generations[engine] = self._generations.get(engine, 0) + 1
            self.journal.written()

    @contextmanager
    def _synced(self) -> Iterator[None]:
        """What is committed inside survives a loss of power, with all that was committed to this file before."""
        self._db.execute("PRAGMA synchronous=FULL")
        try:
            yield
        finally:
            self._db.execute("PRAGMA synchronous=NORMAL")

    def _write(self, engine: str, record: Record) -> None:
        generation = self._generations.get(engine, 0)
        row = (record.facts.boot, self._rows.to_text(engine, record), time.time(), engine)
        written = self._db.execute(_UPDATE, (*row, generation)) if generation else self._db.execute(_INSERT, row)
        if written.rowcount != 1:
            raise WriteConflict(f"another process moved {engine} since it was observed here")

    def load(self, engine: str) -> Record | None:
        """The record that was kept last of this engine; None where there is none that can be read."""
        query = "SELECT known, generation FROM engines WHERE url = ?"
        try:
            found = self._db.execute(query, (engine,)).fetchone()
        except sqlite3.Error as error:
            raise _unusable(self.path, error) from error
        self._generations[engine] = found[1] if found else 0
        try:
            return None if found is None else from_text(found[0])
        except UnreadableRow as error:
            logging.getLogger("lifecycle").warning("%s: what was kept of it cannot be read: %s", engine, error)
            return None

    def known(self) -> dict[str, Record]:
        """What is kept of each engine, by its address; without those of which it cannot be read."""
        found = {}
        for engine, text in self._db.execute("SELECT url, known FROM engines ORDER BY url").fetchall():
            with suppress(UnreadableRow):
                found[engine] = from_text(text)
        return found

    def close(self) -> None:
        """What was noted is written, and the file is closed."""
        self.journal.flush()
        self._db.close()


def said_of(path: Path, error: Exception) -> str:
    """What is wrong with a file: SQLite says of a folder that cannot be written to that a file cannot be opened."""
    folder = path.parent
    closed = folder.exists() and not os.access(folder, os.W_OK)
    return f"{error} (nothing can be written in {folder})" if closed else str(error)


def _unusable(path: Path, error: Exception) -> ConfigurationError:
    why = f"{path}: what is known of engines cannot be kept there: {said_of(path, error)}"
    return ConfigurationError(f"{why}; LIFECYCLE_STATE_DIR names another folder")
