"""What is told about an engine: one record an edge, one hook for logs, metrics and monitors."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from .adapter import Call, Reply
from .states import State
from .verdicts import Proved, Verdict


@dataclass(frozen=True, slots=True)
class Transition:
    """One edge that an engine has gone along. `duration_s` counts from the beginning of the command."""

    engine: str
    group: str
    trigger: str
    source: State
    dest: State
    command: str = ""
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    duration_s: float = 0.0
    reason: str = ""
    at_s: float = field(default_factory=time.monotonic)

    @property
    def returned_bytes(self) -> int | None:
        """Bytes that a release was seen to give back, the least over the devices; None where it was not measured."""
        verdict = self.verdicts.get("memory_returned")
        return int(verdict.figures["returned_bytes"]) if isinstance(verdict, Proved) else None

    @property
    def returned_by_tag(self) -> Mapping[str, int]:
        """Bytes that each call of a release was seen to give back, by its tags; empty where that was not measured."""
        verdict = self.verdicts.get("memory_returned")
        return dict(verdict.figures.get("returned_by_tag", {})) if isinstance(verdict, Proved) else {}

    @property
    def expected_bytes(self) -> int | None:
        """Bytes that the released tags held beforehand."""
        verdict = self.verdicts.get("memory_returned")
        found = verdict.figures.get("expected_bytes") if verdict else None
        return None if found is None else int(found)


class Observer(Protocol):
    """Is told of every edge and every remote call, after it happened. Must not block; what it raises is logged."""

    def transition(self, record: Transition) -> None:
        """An engine changed its state."""

    def call(self, engine: str, call: Call, reply: Reply, duration_s: float) -> None:
        """A remote call ended."""


class BaseObserver:
    """An observer that does nothing, to inherit from."""

    def transition(self, record: Transition) -> None:
        """An engine changed its state."""

    def call(self, engine: str, call: Call, reply: Reply, duration_s: float) -> None:
        """A remote call ended."""


class Observers:
    """Tells each of several observers; one that throws is logged and cannot break the work."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = tuple(observers)

    def transition(self, record: Transition) -> None:
        """Every observer was told of this edge."""
        for observer in self._observers:
            try:
                observer.transition(record)
            except Exception:
                _complain(observer)

    def call(self, engine: str, call: Call, reply: Reply, duration_s: float) -> None:
        """Every observer was told of this call."""
        for observer in self._observers:
            try:
                observer.call(engine, call, reply, duration_s)
            except Exception:
                _complain(observer)


def _complain(observer: Observer) -> None:
    logging.getLogger("lifecycle").exception("observer %s failed; the work goes on", type(observer).__name__)
