"""Drivers that write into one journal of a test, and what stands in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lifecycle import Engine
from lifecycle.core.journal import Entry
from lifecycle.store.journal import read_file
from lifecycle.store.sqlite import Store
from lifecycle.testing import QUICK, ScriptedAdapter


def driver(adapter: ScriptedAdapter, path: Path, **how: Any) -> Engine:
    """A driver of this engine that keeps what it knows, and its journal, in this folder."""
    policy = replace(QUICK, **how.pop("policy", {}))
    store = how.pop("store", None) or Store(path / "engines.sqlite3")
    return Engine(adapter, name=adapter.name, policy=policy, probe=adapter.probe, store=store, **how)


def read(path: Path) -> list[Entry]:
    """The entries of the journal in this folder."""
    return list(read_file(path / "engines.sqlite3"))


def kinds(entries: list[Entry]) -> list[str]:
    """The kind of each entry."""
    return [entry.kind for entry in entries]
