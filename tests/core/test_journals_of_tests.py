"""What drivers in other processes write during a test is checked too, and found where it breaks a rule."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import journals
import pytest

from lifecycle.core.journal import Attached, Entry, StateEntered
from lifecycle.core.states import State
from lifecycle.store.sqlite import Store

#: A driver that pauses a scripted engine. What it is given second is not written into its journal.
DRIVER = """
import asyncio, sys
from pathlib import Path
from lifecycle import Engine
from lifecycle.store.journal import Journal
from lifecycle.store.sqlite import Store
from lifecycle.testing import QUICK, ScriptedAdapter

note = Journal.note
Journal.note = lambda self, entries, **how: note(self, [each for each in entries if each.kind != sys.argv[2]], **how)

async def main():
    adapter, store = ScriptedAdapter("e"), Store(Path(sys.argv[1]))
    engine = await Engine(adapter, name="e", policy=QUICK, probe=adapter.probe, store=store).connect()
    await engine.pause()
    await engine.resume()
    store.close()

asyncio.run(main())
"""


def driven(path: Path, without: str = "") -> None:
    """Another process drove an engine, and left entries out of its journal."""
    subprocess.run([sys.executable, "-c", DRIVER, str(path), without], check=True, timeout=60)


def test_what_another_process_writes_is_counted_once(tmp_path: Path) -> None:
    files = journals.Files()
    driven(tmp_path / "below-another-name")
    first = files.read(tmp_path)
    assert first.count > 10
    assert (files.of_others, first.broken) == (1, {})
    assert files.read(tmp_path).count == 0
    driven(tmp_path / "below-another-name")
    assert files.read(tmp_path).count > 10
    assert files.of_others == 1


@pytest.mark.provokes_violation("intent")
def test_what_another_process_does_against_a_rule_is_found(tmp_path: Path) -> None:
    driven(tmp_path / "engines.sqlite3", without="CallSent")
    found = journals.Files().read(tmp_path)
    assert set(found.broken) == {"intent"}
    assert str(tmp_path / "engines.sqlite3") in found.broken["intent"]


@pytest.mark.provokes_violation("intent")
def test_it_is_found_in_the_state_folder_of_the_run_too() -> None:
    driven(Path(os.environ["XDG_STATE_HOME"]) / "lifecycle" / "of-this-test.sqlite3", without="CallSent")


def test_a_journal_made_by_hand_is_not_taken_for_one(tmp_path: Path) -> None:
    store = Store(tmp_path / "engines.sqlite3")
    attached = Attached("pid 1", "loopback://h:1", "default", "b", "0", 0)
    for event in (attached, StateEntered("resume", State.PAUSED, State.GONE)):
        store.journal.note([Entry(event, 1e9, "t", "e", "h:1")])
    store.close()
    found = journals.Files().read(tmp_path)
    assert (found.count, found.broken) == (0, {})
