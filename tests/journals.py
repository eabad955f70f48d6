"""Journals of tests: what the drivers of a test write is checked as they write it, whether a file keeps it or not.

A test that provokes a violation is marked `provokes_violation(rule)`; it must be found then. One that takes a guard or
a proof out of the table is marked `changes_the_table`, and is not checked: by which table?
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lifecycle.core.journal import Entry
from lifecycle.engine.session import Session
from lifecycle.rules.violations import Checker
from lifecycle.store.journal import Journal


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

    def note(self, entries: Iterable[Entry]) -> None:
        noted = list(entries)
        self._entries += noted
        if self._beside is not None:
            self._beside.note(noted)

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
        found = Session._journal_file
        known: dict[int, Kept] = {}

        def file(session: Session) -> Kept:
            beside = found(session)
            return known.setdefault(id(beside), Kept(entries, beside))

        patch.setattr(Session, "_journal_file", file)
        checked = [entries] if isinstance(entries, Checked) else []
        _CHECKED.extend(checked)
        try:
            yield entries
        finally:
            del _CHECKED[len(_CHECKED) - len(checked) :]
