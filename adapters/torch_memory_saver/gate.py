"""Admission of requests to an engine in this process: requests pass a gate, which counts them and can be closed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from lifecycle.core.capabilities import PauseTraits
from lifecycle.core.facts import PauseMode


class InFlight(Protocol):
    """What runs the engine's requests, as this library uses it.

    Every method may be called from any thread and returns without waiting for requests.
    """

    @property
    def modes(self) -> Mapping[PauseMode, PauseTraits]:
        """The pause modes that it supports."""

    def close(self, mode: PauseMode) -> None:
        """Stops admission; requests in flight are treated as the mode says. May be called while closed."""

    def open(self) -> None:
        """Admits requests again."""

    def is_closed(self) -> bool:
        """Whether admission is stopped."""

    def running(self) -> int:
        """The number of requests that can still run a step."""


class GateClosed(RuntimeError):
    """A request arrived while admission was stopped."""


class Gate:
    """Counts the requests in flight. The mode `abort` asks them to stop (`aborting`); `wait` lets them finish.

    `with gate.request(): ...` must enclose everything that may touch the engine's memory.
    """

    modes: Mapping[PauseMode, PauseTraits] = {"abort": PauseTraits(drains=True), "wait": PauseTraits(drains=True)}

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._mode: PauseMode | None = None

    @property
    def aborting(self) -> bool:
        """Whether a request in flight should stop at its next step."""
        return self._mode == "abort"

    @contextmanager
    def request(self) -> Iterator[None]:
        """Counts a request as in flight for the length of the context. Raises GateClosed while admission is stopped."""
        with self._lock:
            if self._mode is not None:
                raise GateClosed("the engine is paused; its fleet resumes it")
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1

    def close(self, mode: PauseMode) -> None:
        """Stops admission; with the mode abort, requests in flight are asked to stop."""
        with self._lock:
            self._mode = mode

    def open(self) -> None:
        """Admits requests again."""
        with self._lock:
            self._mode = None

    def is_closed(self) -> bool:
        """Whether admission is stopped."""
        return self._mode is not None

    def running(self) -> int:
        """The number of requests in flight."""
        return self._running
