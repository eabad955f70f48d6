"""Journals of real engines, redacted, as they are committed."""

from __future__ import annotations

from pathlib import Path

from lifecycle.render.redacted import redacted
from lifecycle.store.journal import read_file, to_line
from lifecycle.store.sqlite import default_path

FOLDER = Path(__file__).parents[2] / "docs" / "measured" / "journals"


def last_number() -> int:
    """The number of the last entry that drivers of this user wrote; 0 where there is none."""
    path = default_path()
    return max((entry.number or 0 for entry in read_file(path)), default=0) if path.exists() else 0


def write(name: str, after: int) -> Path:
    """What drivers of this user wrote since that entry."""
    entries = [entry for entry in read_file(default_path()) if (entry.number or 0) > after]
    assert entries, f"{name}: no driver wrote anything"
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.jsonl"
    path.write_text("".join(f"{to_line(entry)}\n" for entry in redacted(entries)))
    return path
