"""Journals of tests: everything that the drivers of a test write is kept in memory too, and checked when it ends.

A test that provokes a violation is marked `provokes_violation(rule)`; it must be found then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lifecycle.core.journal import Entry
from lifecycle.engine.session import Session
from lifecycle.rules.violations import Violation, violations
from lifecycle.store.journal import Journal


class Kept:
    """A journal in memory, which passes on to a real one what is noted."""

    def __init__(self, entries: list[Entry], beside: Journal | None) -> None:
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


@contextmanager
def kept() -> Iterator[list[Entry]]:
    """The entries that drivers of this process write inside."""
    entries: list[Entry] = []
    with pytest.MonkeyPatch.context() as patch:
        found = Session._journal_file
        known: dict[int, Kept] = {}

        def file(session: Session) -> Kept:
            beside = found(session)
            return known.setdefault(id(beside), Kept(entries, beside))

        patch.setattr(Session, "_journal_file", file)
        yield entries


def told(found: Iterable[Violation], entries: list[Entry]) -> str:
    """What is wrong, with the entries before it."""
    lines = []
    for each in found:
        at = next(index for index, entry in enumerate(entries) if entry is each.entry)
        lines += [
            f"{each.rule}: {each.why}",
            *(f"    {entry.engine} {entry.event}" for entry in entries[: at + 1][-12:]),
        ]
    return "\n".join(lines)


def check(entries: list[Entry], provoked: frozenset[str]) -> None:
    """The entries break the rules that the test is to break, and no other."""
    found = list(violations(entries))
    rules = {each.rule for each in found}
    assert rules == provoked, f"provoked: {sorted(provoked)}, found:\n{told(found, entries)}"
