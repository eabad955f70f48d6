"""Leases in one SQLite file: among the drivers of one user on one host.

A lease is void once the process of its driver has ended, and not before: a driver that hangs keeps its engine, since to
take an engine from a driver that lives is what leases are there to prevent. On one host that can be known: a process is
told by its pid and start time, in the boot of the host. Of a driver of another host, or in another pid namespace,
nothing can be known here, and its lease counts for nothing but the call that it may have sent.
"""

from __future__ import annotations

import gc
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from ..core.errors import ConfigurationError
from ..core.lease import Driver, Lease, LeasedEngine, LeaseHeld, LeaseUse, next_lease
from ..core.ports import LeaseHolder
from ..nodes.clock import set_since_s, stamp
from ..nodes.processes import start_mark
from .reserve import Reserve, disk_is_full
from .shared_file import SharedFile
from .sqlite import Store, default_path, said_of

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS leases (address TEXT PRIMARY KEY, boot TEXT, token TEXT NOT NULL, who TEXT NOT NULL, "
    "pid INTEGER NOT NULL, mark TEXT NOT NULL, what TEXT NOT NULL, since REAL NOT NULL, until REAL, call_until REAL, "
    "uses INTEGER NOT NULL, used INTEGER NOT NULL, kept_in TEXT, held INTEGER NOT NULL)"
)
_CLOCK = "ALTER TABLE leases ADD COLUMN clock TEXT NOT NULL DEFAULT ''"  # a file of an earlier version has none
_COLUMNS = "address, boot, token, who, pid, mark, what, since, until, call_until, uses, used, kept_in, held, clock"
_READ = f"SELECT {_COLUMNS} FROM leases WHERE address = ? OR boot = ?"
_WRITE = f"INSERT OR REPLACE INTO leases ({_COLUMNS}) VALUES ({', '.join('?' * 15)})"

#: The drivers of this process that took a lease and still exist.
_HERE: WeakValueDictionary[str, Driver] = WeakValueDictionary()

_collected_at_s = float("-inf")


class Leases:
    """The leases of one file (a `LeaseHolder`); None: the file of this user. What is known is kept there too.

    The file is opened when it is first asked. ConfigurationError says why it cannot be. With `reads_only` it tells who
    has an engine, from what stood there then, and keeps nobody away.
    """

    def __init__(self, path: Path | None = None, *, reads_only: bool = False) -> None:
        self._path = path
        self.reads_only = reads_only
        self._file = SharedFile(lambda: self.path, _upgraded, _unusable, reads_only=reads_only)
        self._records: Store | None = None

    def __str__(self) -> str:
        home, path = str(Path.home()), str(self.path)
        return f"drivers of this user on this host ({'~' + path[len(home) :] if path.startswith(home + '/') else path})"

    @property
    def of_user(self) -> bool:
        """Whether it is the file of this user, where no other was named."""
        return self._path is None

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._path or default_path()

    def records(self) -> Store:
        """What is known of engines, kept in the same file."""
        if self._records is None:
            self._records = Store(self.path, reads_only=self.reads_only)
        return self._records

    def take(self, driver: Driver, engine: LeasedEngine, use: LeaseUse) -> Lease:
        """The driver has the engine. Raises LeaseHeld where another has it, or what another sent may still run.

        Where the disk is full, what the store reserved for the end of a command is given up.
        """
        (taken,) = self.take_all([(driver, engine, use)])
        if isinstance(taken, LeaseHeld):
            raise taken
        return taken

    def take_all(self, asked: Sequence[tuple[Driver, LeasedEngine, LeaseUse]]) -> list[Lease | LeaseHeld]:
        """As `take`, of several engines in one transaction: for each its lease, or why it was refused."""
        try:
            return self._take(asked)
        except ConfigurationError as problem:
            if not disk_is_full(problem.__cause__) or not Reserve(self.path).give_up():
                raise
            return self._take(asked)

    def _take(self, asked: Sequence[tuple[Driver, LeasedEngine, LeaseUse]]) -> list[Lease | LeaseHeld]:
        with self._file.changing() as db:
            return [_taken(db, *each) for each in asked]

    def free(self, driver: Driver, engine: LeasedEngine) -> None:
        """The driver does not have the engine any more."""
        self.free_all([(driver, engine)])

    def free_all(self, freed: Sequence[tuple[Driver, LeasedEngine]]) -> None:
        """As `free`, of several engines in one transaction."""
        with self._file.changing() as db:
            db.executemany(
                "UPDATE leases SET held = 0 WHERE token = ? AND (address = ? OR boot = ?)",
                [(driver.token, engine.address, engine.boot) for driver, engine in freed],
            )

    def seen(self, engine: LeasedEngine) -> Lease | None:
        """The lease that was taken last of this engine; None where none ever was."""
        with self._file.asking() as db:
            found = _last(db, engine)
        return None if found is None else found.lease


#: A holder as one function, for instance a call of an actor: it is given the method's name, then its arguments by name.
LeaseFunction = Callable[..., Any]


class FunctionHolder:
    """A holder that asks a function: `function("take", driver=..., engine=..., use=...)`, "free" or "seen"."""

    def __init__(self, function: LeaseFunction) -> None:
        self._ask = function

    def __str__(self) -> str:
        return f"drivers that ask {getattr(self._ask, '__qualname__', 'the same function')}"

    def take(self, driver: Driver, engine: LeasedEngine, use: LeaseUse) -> Lease:
        """As the function answers."""
        lease: Lease = self._ask("take", driver=driver, engine=engine, use=use)
        return lease

    def free(self, driver: Driver, engine: LeasedEngine) -> None:
        """As the function does."""
        self._ask("free", driver=driver, engine=engine)

    def seen(self, engine: LeasedEngine) -> Lease | None:
        """As the function answers."""
        lease: Lease | None = self._ask("seen", engine=engine)
        return lease


class RenewingHolder(FunctionHolder):
    """The same, of leases that end unless they are renewed: `function("renew", driver=...)`, from another thread.

    That is asked every `renew_s` seconds while the driver has a lease, and must be well below the time after which one
    ends (`LeaseTable.ttl_s`).
    """

    def __init__(self, function: LeaseFunction, *, renew_s: float) -> None:
        super().__init__(function)
        if not renew_s > 0:
            raise ConfigurationError(f"renew_s={renew_s!r}: seconds > 0")
        self.renew_s = renew_s

    def renew(self, driver: Driver) -> None:
        """As the function does."""
        self._ask("renew", driver=driver)


def holder_of(given: LeaseHolder | LeaseFunction) -> LeaseHolder:
    """What was given as a holder; a function becomes one. ConfigurationError where it is neither."""
    if isinstance(given, LeaseHolder):
        return given
    if callable(given):
        return FunctionHolder(given)
    raise ConfigurationError(f"lease={given!r}: a holder of leases, a function, 'user', or None for no lease at all")


def _upgraded(db: sqlite3.Connection) -> None:
    """The table is there, with the columns of now."""
    db.execute(_SCHEMA)
    db.execute("CREATE INDEX IF NOT EXISTS leases_by_boot ON leases (boot)")
    if "clock" not in {column[1] for column in db.execute("PRAGMA table_info(leases)")}:
        with suppress(sqlite3.OperationalError):  # another process was first
            db.execute(_CLOCK)


def _taken(db: sqlite3.Connection, driver: Driver, engine: LeasedEngine, use: LeaseUse) -> Lease | LeaseHeld:
    """The driver has the engine from here on; else who has it."""
    last = _last(db, engine)
    if _refuses(last, driver) and _forgotten_are_collected():
        last = _last(db, engine)
    if last is not None and (_refuses(last, driver) or _is_over(last, driver, use)):
        return LeaseHeld(last.lease)
    _HERE[driver.token] = driver
    known = None if last is None else last.lease
    lease, sent = next_lease(driver, use, last=known, sent=last is not None and last.used)
    _write(db, engine, lease, used=sent)
    return lease


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the file: the lease, and whether something was sent under it."""

    lease: Lease
    used: bool


def _last(db: sqlite3.Connection, engine: LeasedEngine) -> _Row | None:
    """The lease of this engine that is held, else the one that was taken last, under any of its names.

    It has the highest number of uses that any of them has.
    """
    rows = [_row(found) for found in db.execute(_READ, (engine.address, engine.boot)).fetchall()]
    if len(rows) < 2:
        return rows[0] if rows else None
    last = max(rows, key=lambda row: (_holds(row.lease), row.lease.since_s))
    acted = max(rows, key=lambda row: row.lease.uses).lease
    return _Row(replace(last.lease, uses=acted.uses, kept_in=acted.kept_in), last.used)


def _row(found: tuple[Any, ...]) -> _Row:
    _, _, token, who, pid, mark, what, *times, uses, used, kept_in, held, clock = found
    lives, set_s = bool(held) and _lives(token, pid, mark), set_since_s(clock)
    since_s, until_s, call_until_s = [None if each is None else each + set_s for each in times]
    return _Row(Lease(token, who, what, lives, since_s or 0.0, until_s, call_until_s, uses, kept_in), bool(used))


def _write(db: sqlite3.Connection, engine: LeasedEngine, lease: Lease, *, used: bool) -> None:
    db.execute(
        _WRITE,
        (
            engine.address,
            engine.boot,
            lease.token,
            lease.who,
            os.getpid(),
            _own_mark(os.getpid()),
            lease.what,
            lease.since_s,
            lease.until_s,
            lease.call_until_s,
            lease.uses,
            used,
            lease.kept_in,
            True,
            stamp(),
        ),
    )


def _forgotten_are_collected() -> bool:
    """Engine objects that nobody has any more are gone: they drive nothing. Costs a collection, once a second."""
    global _collected_at_s
    if time.monotonic() - _collected_at_s < 1.0:
        return False
    gc.collect()
    _collected_at_s = time.monotonic()
    return True


def _refuses(last: _Row | None, driver: Driver) -> bool:
    """Whether another driver than this has the engine."""
    return last is not None and last.lease.token != driver.token and _holds(last.lease)


def _is_over(last: _Row, driver: Driver, use: LeaseUse) -> bool:
    """Whether a lease that was to go on is over: another driver took it, or it ended, after which a call takes it."""
    return use.goes_on and (last.lease.token != driver.token or not (last.lease.held or use.sends))


def _holds(lease: Lease) -> bool:
    """Whether nobody else may have the engine: its driver lives, or what that one sent may still run."""
    return lease.held or (lease.call_until_s or 0.0) > time.time()


def _lives(token: str, pid: int, mark: str) -> bool:
    """Whether the driver of this token still exists."""
    return _own_mark(pid) == mark and token in _HERE if pid == os.getpid() else start_mark(pid) == mark


@cache
def _own_mark(pid: int) -> str:
    """The mark of this process, whose pid this is. It does not change, and is asked before every call."""
    return start_mark(pid)


os.register_at_fork(after_in_child=_own_mark.cache_clear)


def _unusable(path: Path, error: Exception) -> ConfigurationError:
    why = f"{path}: who drives an engine cannot be written down there: {said_of(path, error)}"
    ways = "LIFECYCLE_STATE_DIR names another folder, lease= another holder, lease=None drives without a lease"
    return ConfigurationError(f"{why}; {ways}")
