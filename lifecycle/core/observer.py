"""Observers: what is told about engines and moves, to logs, metrics and monitors.

One command is heard as `command_started`, then either `refused`, or any number of `call` and `transition`, and last
`command_ended`; one that is refused before it has the engine (busy, not allowed there) as `refused` alone. A move of a
fleet is heard as `move` when it begins and when it ends, each phase of it as `phase`, and an engine that it goes on
without as `quarantined`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from .calls import Call, Reply
from .commands import Command
from .errors import CommandRefused
from .frozen import EMPTY
from .states import State
from .transition import Transition


@dataclass(frozen=True, slots=True)
class MoveEvent:
    """A move (`offload`, `onload`), or one phase of it, begins or has ended.

    `phase` is the command of the phase, empty where the event is about the whole move. `failed` are the engines that
    failed, by name, with what they raised. `duration_s` is None at the beginning.
    """

    move: str
    engines: tuple[str, ...]
    phase: str = ""
    duration_s: float | None = None
    failed: Mapping[str, BaseException] = EMPTY

    @property
    def ended(self) -> bool:
        """Whether this is the end of it."""
        return self.duration_s is not None


class Observer(Protocol):
    """Hears of every command, call, edge, phase and move, after it happened. Must not block; what it raises is logged.

    A method that an observer lacks is not called.
    """

    def command_started(self, engine: str, command: Command, state: State) -> None:
        """An engine was claimed for a command, in this state; nothing was sent yet."""

    def refused(self, engine: str, command: Command, error: CommandRefused) -> None:
        """The command was refused: no lifecycle call was sent."""

    def call(self, engine: str, call: Call, reply: Reply, duration_s: float) -> None:
        """A remote call ended."""

    def transition(self, record: Transition) -> None:
        """An engine changed its state."""

    def command_ended(
        self, engine: str, command: Command, result: Transition | BaseException, duration_s: float
    ) -> None:
        """The command ended: with the transition to its destination, or with what it raised."""

    def phase(self, event: MoveEvent) -> None:
        """A phase of a move begins or has ended."""

    def move(self, event: MoveEvent) -> None:
        """A move begins or has ended."""

    def quarantined(self, engine: str, error: Exception, reason: str) -> None:
        """A move goes on without an engine that failed with this error; `reason` says why that is safe."""


class BaseObserver:
    """An observer that does nothing, to inherit from."""

    __slots__ = ()

    def command_started(self, engine: str, command: Command, state: State) -> None:
        """An engine was claimed for a command."""

    def refused(self, engine: str, command: Command, error: CommandRefused) -> None:
        """The command was refused."""

    def call(self, engine: str, call: Call, reply: Reply, duration_s: float) -> None:
        """A remote call ended."""

    def transition(self, record: Transition) -> None:
        """An engine changed its state."""

    def command_ended(
        self, engine: str, command: Command, result: Transition | BaseException, duration_s: float
    ) -> None:
        """The command ended."""

    def phase(self, event: MoveEvent) -> None:
        """A phase of a move begins or has ended."""

    def move(self, event: MoveEvent) -> None:
        """A move begins or has ended."""

    def quarantined(self, engine: str, error: Exception, reason: str) -> None:
        """A move goes on without an engine that failed."""


class Observers:
    """Tells each of several observers; one that throws is logged and cannot break the work."""

    __slots__ = ("_observers",)

    def __init__(self, observers: Iterable[Any] = ()) -> None:
        self._observers = tuple(observers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._observers)

    @contextmanager
    def joined_by(self, observer: Any) -> Iterator[None]:
        """Inside, this observer hears too."""
        self._observers += (observer,)
        try:
            yield
        finally:
            self._observers = tuple(each for each in self._observers if each is not observer)

    def notify(self, event: str, *about: object) -> None:
        """Every observer that has a method of this name was called with `about`."""
        for observer in self._observers:
            try:
                hear = getattr(observer, event, None)
                if hear is not None:
                    hear(*about)
            except Exception:
                kind = type(observer).__name__
                logging.getLogger("lifecycle").exception("observer %s failed; the work goes on", kind)
