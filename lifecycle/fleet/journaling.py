"""What a move, or a step, writes into the journals of its engines: its phases, and that devices were handed over."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from uuid import uuid4

from ..core.commands import Command
from ..core.journal import Entry, Event, HandedOver, MovePhase, Quarantined
from ..core.observer import MoveEvent, Observers
from ..core.states import State
from ..engine.engine import Engine
from .course import Outcome


@contextmanager
def step_noted(commands: Sequence[tuple[Engine, Command]]) -> Iterator[list[Outcome]]:
    """A step of a fleet, one command to several engines, is a move of one phase in their journals.

    It is noted when it begins and when it has ended; what became of the engines is added to the list by the caller.
    """
    outcomes: list[Outcome] = []
    if not commands:
        yield outcomes
        return
    engines, what = [engine for engine, _ in commands], commands[0][1].name
    journal, began_s = MoveJournal(engines), time.monotonic()
    names = tuple(engine.name for engine in engines)
    journal.phase(MoveEvent(what, names))
    try:
        yield outcomes
    finally:
        failed = {each.engine.name: each.error for each in outcomes if each.error is not None}
        journal.phase(MoveEvent(what, names, "", time.monotonic() - began_s, failed))


class MoveJournal:
    """Writes one entry into each journal of the engines of one move, under an id of the move; observers hear of it."""

    def __init__(self, engines: Sequence[Engine], observers: Observers | None = None) -> None:
        self._engines = list(engines)
        self._observers = observers or Observers()
        self._files = {id(file): file for each in engines if (file := each.journal.file) is not None}
        self._move_id = uuid4().hex[:12]

    def begins(self, move: str, phase: str, engines: Sequence[Engine]) -> tuple[MoveEvent, float]:
        """The move (no `phase`), or a phase of it, begins with these engines; what `ended` is given."""
        event = MoveEvent(move, tuple(engine.name for engine in engines), phase)
        self._notify(event)
        return event, time.monotonic()

    def ended(self, begun: tuple[MoveEvent, float], outcomes: Sequence[Outcome] = ()) -> None:
        """It has ended, for these engines so."""
        event, at_s = begun
        failed = {outcome.engine.name: outcome.error for outcome in outcomes if outcome.error is not None}
        self._notify(MoveEvent(event.move, event.engines, event.phase, time.monotonic() - at_s, failed))

    def _notify(self, event: MoveEvent) -> None:
        self._observers.notify("phase" if event.phase else "move", event)
        self.phase(event)

    def phase(self, event: MoveEvent) -> None:
        """The move, or a phase of it, begins or has ended."""
        if not self._files:
            return
        named = frozenset(event.engines)
        drivers = tuple(each.journal.driver for each in self._engines if each.name in named)
        failed = tuple(event.failed)
        self._note(MovePhase(event.move, self._move_id, event.phase, drivers, failed, event.duration_s))

    def quarantined(
        self, move: str, engine: Engine, reason: str, closed: bool, devices: Iterable[str], others: Iterable[str]
    ) -> None:
        """The move goes on without this engine, which lives on `devices` or is gone; `others` are those of the rest."""
        gone, on, theirs = engine.state is State.GONE, tuple(sorted(devices)), tuple(sorted(others))
        driver = engine.journal.driver
        self._note(Quarantined(move, self._move_id, driver, engine.name, reason, gone, closed, on, theirs))

    def handed_over(self, engines: Sequence[Engine]) -> None:
        """The devices of these engines are the next tenant's, and those of all that are gone."""
        if not self._files:
            return
        gone = tuple(each.journal.driver for each in self._engines if each.state is State.GONE)
        returned = {
            each.journal.driver: each.conditions["memory_returned"].verdict
            for each in engines
            if each.state is not State.GONE and "memory_returned" in each.conditions
        }
        self._note(HandedOver(self._move_id, returned, gone))

    def _note(self, event: Event) -> None:
        for file in self._files.values():
            file.note([Entry(event, time.time(), self._move_id)])
