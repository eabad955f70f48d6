"""Journals of tests: what the drivers of a test write is checked as they write it, whether a file keeps it or not.

What drivers in other processes write (commands, forked drivers, the demo) is read from the files that they leave in the
test's folder and in the state folder of the run, and is checked with what this process wrote there.

A test that provokes a violation is marked `provokes_violation(rule)`; it must be found then. One that takes a guard or
a proof out of the table is marked `changes_the_table`, and is not checked: by which table?
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from stat import S_ISREG

import pytest

from lifecycle.core.journal import Attached, Entry
from lifecycle.engine.session import Session
from lifecycle.rules.violations import Checker
from lifecycle.store.journal import Journal, entry_of, is_sqlite
from lifecycle.store.reading import UnreadableJournal

_NEXT = "SELECT number, at, driver, engine, key, kind, event, format FROM journal WHERE number > ? ORDER BY number"


class Checked:
    """Entries, checked as they come: the rules that were broken, and how, with the entries before."""

    def __init__(self) -> None:
        self.broken: dict[str, str] = {}
        self.count = 0
        self._checker = Checker()
        self._last: deque[Entry] = deque(maxlen=12)

    def __iadd__(self, entries: Iterable[Entry]) -> Checked:
        for entry in entries:
            self.count += 1
            self._last.append(entry)
            for found in self._checker.broken_by(entry):
                before = "\n".join(f"    {each.engine} {each.event}" for each in self._last)
                self.broken.setdefault(found.rule, f"{found.rule}: {found.why}\n{before}")
        return self

    def another_world(self) -> None:
        """Engines of the names so far that come from here on are others: what was sent to those says nothing."""
        self._checker = Checker()
        self._last.clear()

    def must_break(self, rules: frozenset[str]) -> None:
        """These rules were broken, and no other."""
        told = "\n".join(self.broken.values())
        assert set(self.broken) == rules, f"provoked: {sorted(rules)}, found: {sorted(self.broken)}\n{told}"


class Kept:
    """A journal in memory, which passes on to a real one what is noted."""

    def __init__(self, entries: list[Entry] | Checked, beside: Journal | None) -> None:
        self.path = Path("in memory") if beside is None else beside.path
        self._entries = entries
        self._beside = beside

    def note(self, entries: Iterable[Entry], *, with_row: bool = False) -> None:
        noted = list(entries)
        self._entries += noted
        if self._beside is not None:
            self._beside.note(noted, with_row=with_row)

    def row_comes(self) -> None:
        if self._beside is not None:
            self._beside.row_comes()

    def flush(self) -> None:
        if self._beside is not None:
            self._beside.flush()


#: What is being checked now, the innermost last.
_CHECKED: list[Checked] = []


def another_world() -> None:
    """A test begins anew with engines of the same names and boots, as each example of a property does."""
    for checked in _CHECKED:
        checked.another_world()


@contextmanager
def kept(entries: list[Entry] | Checked | None = None) -> Iterator[list[Entry] | Checked]:
    """The entries that drivers of this process write inside."""
    entries = [] if entries is None else entries
    with pytest.MonkeyPatch.context() as patch:
        found = Session.journal_file
        known: dict[int, Kept] = {}

        def file(session: Session) -> Kept:
            beside = found(session)
            return known.setdefault(id(beside), Kept(entries, beside))

        patch.setattr(Session, "journal_file", file)
        checked = [entries] if isinstance(entries, Checked) else []
        _CHECKED.extend(checked)
        try:
            yield entries
        finally:
            del _CHECKED[len(_CHECKED) - len(checked) :]


class OfOthers:
    """One file, read on from where it was read before. `count` are the entries that drivers of other processes wrote.

    Nothing counts before such a driver is seen to have attached: a test makes journals by hand, damaged ones too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._checked = Checked()
        self._others: set[str] = set()
        self._last = 0
        self._stamp: object = None
        self._told: set[str] = set()

    def read_on(self) -> dict[str, str]:
        """The rules that were broken since it was read before, and how."""
        stamp = [_stamp(self.path), _stamp(self.path.with_name(f"{self.path.name}-wal"))]
        if stamp == self._stamp:
            return {}
        self._stamp = stamp
        try:
            for entry in _rows(self.path, self._last):
                self._last = entry.number or self._last
                if isinstance(entry.event, Attached) and _of_other_process(entry.event.who):
                    self._others.add(entry.driver)
                self.count += entry.driver in self._others
                self._checked += [entry]
        except UnreadableJournal as error:
            self._checked.broken.setdefault("unreadable", str(error))
        if not self._others:
            return {}
        new = {rule: f"{self.path}: {how}" for rule, how in self._checked.broken.items() if rule not in self._told}
        self._told |= set(new)
        return new


class Files:
    """The store files that tests leave, each read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], OfOthers] = {}
        #: Files that are no store, as they were when they were looked at.
        self._none: set[tuple[Path, object]] = set()

    def read(self, *places: Path) -> Checked:
        """What is new in the stores at or below these places, of the files that other processes wrote."""
        found = Checked()
        for path in self._stores(places):
            with suppress(FileNotFoundError):
                status = path.stat()
                each = self._known.setdefault((status.st_dev, status.st_ino), OfOthers(path))
                before = each.count
                for rule, how in each.read_on().items():
                    found.broken.setdefault(rule, how)
                found.count += each.count - before
        return found

    def _stores(self, places: Iterable[Path]) -> Iterator[Path]:
        for place in places:
            for path in [place] if place.is_file() else sorted(place.rglob("*")):
                with suppress(OSError):
                    status = path.lstat()
                    if (status.st_dev, status.st_ino) in self._known:
                        yield path
                    elif S_ISREG(status.st_mode) and (path, _stamp(path)) not in self._none:
                        if is_sqlite(path):
                            yield path
                        else:
                            self._none.add((path, _stamp(path)))

    @property
    def of_others(self) -> int:
        """How many files other processes wrote."""
        return sum(each.count > 0 for each in self._known.values())


def _rows(path: Path, after: int) -> Iterator[Entry]:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)) as db:
            rows = db.execute(_NEXT, (after,)).fetchall()
    except sqlite3.Error:  # damaged on purpose, or a store without a journal
        return
    for row in rows:
        yield entry_of(row, str(path))


def _of_other_process(who: str) -> bool:
    found = re.match(r"pid (\d+) on ", who)
    return found is not None and int(found[1]) != os.getpid()


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size
