"""What is told about an engine: one record an edge, one hook for logs, metrics and monitors."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Protocol

from .calls import Call, Reply
from .transition import Transition


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
