"""What the tests of group commit share: drained engines with one store, and what a connection is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lifecycle import Engine, State
from lifecycle.core.observer import BaseObserver
from lifecycle.core.record import Record
from lifecycle.core.transition import Transition
from lifecycle.store.sqlite import Store
from lifecycle.testing import QUICK, ScriptedAdapter

FILE = "engines.sqlite3"


class When(BaseObserver):
    """Does something when an engine enters a state."""

    def __init__(self, state: State, act: Callable[[str], object]) -> None:
        self._state = state
        self._act = act

    def transition(self, record: Transition) -> None:
        """The engine changed its state."""
        if record.dest is self._state:
            self._act(record.engine)


async def drained(path: Path, *names: str, **how: Any) -> list[Engine]:
    """Drained engines with one store; `how`: of each engine."""
    store = how.pop("store", None) or Store(path / FILE)
    engines = []
    for name in names:
        adapter = ScriptedAdapter(name)
        engine = Engine(adapter, name=name, probe=adapter.probe, store=store, **{"policy": QUICK, **how})
        await engine.connect()
        await engine.pause()
        await engine.drain()
        adapter.journal.clear()
        engines.append(engine)
    return engines


def traced(db: Any) -> list[str]:
    """What this connection is told from here on: the beginnings of its statements."""
    told: list[str] = []
    db.set_trace_callback(lambda sql: told.append(" ".join(sql.split()[:2])))
    return told


def kept(path: Path, engine: Engine) -> Record:
    record = Store(path / FILE).load(engine.adapter.url)
    assert record is not None
    return record
