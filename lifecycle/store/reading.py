"""Reading what is kept without writing anything: where nothing can be written, and where nothing needs to be."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path

from ..core.errors import ConfigurationError


class UnreadableJournal(ConfigurationError):
    """A journal, or an entry of it, that this version cannot read; the message says where and why."""


def can_be_written(path: Path) -> bool:
    """Whether this process may write this file; its folder is there then."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))
    return False


def in_memory(path: Path) -> sqlite3.Connection:
    """What stands in this file now, in memory: what is written there is kept nowhere. Empty where there is no file."""
    memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        with suppress(OSError):
            if path.exists():
                with closing(opened(path)) as db:
                    db.backup(memory)
    except BaseException:
        memory.close()
        raise
    return memory


def opened(path: Path) -> sqlite3.Connection:
    """Read without writing anything: neither a table nor a journal mode is made.

    A journal whose folder cannot be written to, and that no process has open, is read as it stands. Where a part of it
    lies in the file beside it (`-wal`), that takes a copy: SQLite reads both only where it may write.
    """
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        db = sqlite3.connect(uri, uri=True, timeout=5.0)
        try:
            db.execute("SELECT 1 FROM sqlite_master")
        except sqlite3.OperationalError as error:
            db.close()
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
                raise
            if path.with_name(f"{path.name}-shm").exists():  # it may be in use: a copy would be of two moments
                raise
            if path.with_name(f"{path.name}-wal").exists():
                return _copied(path)
            return sqlite3.connect(f"{uri}&immutable=1", uri=True)
        except sqlite3.Error:
            db.close()
            raise
        return db
    except sqlite3.Error as error:
        raise UnreadableJournal(f"{path}: no journal can be read there: {error}") from error


def _copied(path: Path) -> sqlite3.Connection:
    """The file with what lies beside it, in memory."""
    memory = sqlite3.connect(":memory:")
    try:
        with tempfile.TemporaryDirectory() as folder:
            for each in (path, path.with_name(f"{path.name}-wal")):
                shutil.copyfile(each, Path(folder) / each.name)
            with closing(sqlite3.connect(Path(folder) / path.name)) as copy:
                copy.backup(memory)
    except OSError as error:
        memory.close()
        why = f"its folder cannot be written to, and no copy could be made ({error})"
        raise UnreadableJournal(f"{path}: {why}; copy it with its -wal file to a folder that can be") from error
    except BaseException:
        memory.close()
        raise
    return memory
