"""A SQLite file that processes of one host share: opened when it is first asked, and anew after a fork."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .reading import in_memory

#: Seconds to wait while another process writes. A process that was killed holds no lock; one that was stopped does.
BUSY_S = 5.0


class SharedFile:
    """The file at `path`. `prepare` makes its tables, `unusable` what is raised where it cannot be used.

    With `reads_only` it is what stood there when it was first asked, in memory.
    """

    def __init__(
        self,
        path: Callable[[], Path],
        prepare: Callable[[sqlite3.Connection], object],
        unusable: Callable[[Path, Exception], Exception],
        *,
        reads_only: bool = False,
    ) -> None:
        self._path = path
        self._prepare = prepare
        self._unusable = unusable
        self._reads_only = reads_only
        self._db: sqlite3.Connection | None = None
        self._pid = 0
        self._lock, self._lock_pid = threading.Lock(), os.getpid()

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """The file, with nobody else writing it meanwhile. What is done inside is kept as a whole, or not at all."""
        with self.asking() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    @contextmanager
    def asking(self) -> Iterator[sqlite3.Connection]:
        """The file, to read it."""
        if self._lock_pid != os.getpid():  # another thread may have held it when this process was forked
            self._lock, self._lock_pid = threading.Lock(), os.getpid()
        with self._lock:
            try:
                yield self._opened()
            except (OSError, sqlite3.Error) as error:
                raise self._unusable(self._path(), error) from error

    def _opened(self) -> sqlite3.Connection:
        if self._db is None or self._pid != os.getpid():  # a connection must not be used across a fork
            path = self._path()
            if self._reads_only:
                db = in_memory(path)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_S, check_same_thread=False)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")  # of processes of this host: a loss of power ends them all
            self._prepare(db)
            self._db, self._pid = db, os.getpid()
        return self._db
