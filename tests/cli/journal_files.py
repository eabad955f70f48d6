"""Journals for the tests of `lifecycle history`, `logs` and `verify-journal`: of real engines, and made by hand."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lifecycle import Grade, Proved, State
from lifecycle.core.journal import (
    Attached,
    BarrierReturned,
    CallEnded,
    CallSent,
    CommandBegan,
    CommandEnded,
    Entry,
    Event,
    HandedOver,
    MovePhase,
    Quarantined,
    Refused,
    StateEntered,
)
from lifecycle.store.journal import Bounds, read_file
from lifecycle.store.sqlite import Store

SMALL = ("--threshold-gib", "0.25")
PHASES = ["pause", "drain", "release", "restore_weights", "restore_kv", "resume"]
STATES = ["paused", "drained", "released", "weights_restored", "kv_restored", "serving"]
PROVED = Proved(grade=Grade.MEASURED, reason="none runs")

#: An event of each kind, and what is printed of it.
WORDS: list[tuple[Event, str]] = [
    (Attached("pid 1", "loopback://h:1", "default", "b1", "1", 0), "attached to boot b1 by pid 1"),
    (CommandBegan("pause", State.SERVING), "pause begins, in serving"),
    (Refused("resume", "InvalidTransition", "allowed here: pause"), "resume was refused: allowed here: pause"),
    (CallSent("flush()", "drain", (), True, 1.0, "b1"), "sends flush()"),
    (
        CallSent("release()", "release", ("mapped",), False, 1.0, None, 7, 2),
        "sends release(), which cannot be repeated",
    ),
    (CallEnded("release()", "rejected", 503, "busy", 0.25), "release(): rejected 503 busy (0.250 s)"),
    (BarrierReturned(), "its barrier has returned"),
    (StateEntered("failed", State.PAUSING, State.FAILED, reason="lost"), "pausing -> failed by failed (lost)"),
    (
        StateEntered("succeeded", State.DRAINING, State.DRAINED, verdicts={"idle": PROVED}, memory_returned=PROVED),
        "draining -> drained by succeeded (idle proved: none runs)",
    ),
    (CommandEnded("pause", State.PAUSED, 0.5), "pause succeeded, in paused (0.500 s)"),
    (CommandEnded("pause", State.FAILED, 0.5, "Rejected", "busy"), "pause failed: busy, in failed (0.500 s)"),
    (MovePhase("offload", "m1", "", ("t1", "t2")), "offload begins"),
    (MovePhase("offload", "m1", "drain", ("t1",), ("a",), 0.5), "drain has ended (0.500 s), failed: a"),
    (
        Quarantined("offload", "m1", "t3", "c", "it is gone", True),
        "the move goes on without c: it is gone",
    ),
    (HandedOver("m1", {"t1": PROVED}, ("t2",)), "devices handed over: 1 proved, 1 gone"),
]

Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Driven:
    """The journal of two engines, `a` and `b`, that were offloaded and onloaded; `noted` is what the drivers noted."""

    path: Path
    noted: list[Entry]

    @property
    def entries(self) -> list[Entry]:
        return list(read_file(self.path))


def noted_in(folder: Path, *entries: Entry) -> Path:
    """A journal with these entries, however old, in this state folder."""
    store = Store(folder / "engines.sqlite3", bounds=Bounds(age_s=1e10))
    with closing(store):
        store.journal.note(entries)
    return store.path


def copied(path: Path, to: Path) -> sqlite3.Connection:
    """A copy of a journal, to be changed."""
    copy = sqlite3.connect(to)
    with closing(sqlite3.connect(path)) as source:
        source.backup(copy)
    return copy


def written(lines: Iterable[dict[str, Any]], to: Path) -> Path:
    to.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return to


def numbers(result: subprocess.CompletedProcess[str]) -> list[int]:
    """The numbers of the entries that were printed as JSON."""
    assert result.returncode == 0, result.stderr
    return [json.loads(line)["number"] for line in result.stdout.splitlines()]
