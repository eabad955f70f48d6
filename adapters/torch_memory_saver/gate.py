"""The in-flight hook: how requests of an engine in this process are stopped, and counted."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from lifecycle.core.capabilities import PauseTraits
from lifecycle.core.facts import PauseMode


class InFlight(Protocol):
    """What this library asks of whoever runs the requests. Every method may be called from any thread, and is quick."""

    @property
    def modes(self) -> Mapping[PauseMode, PauseTraits]:
        """The pause modes that it has."""

    def close(self, mode: PauseMode) -> None:
        """No request is admitted; those in flight are handled as the mode says. Closing twice is harmless."""

    def open(self) -> None:
        """Requests are admitted."""

    def is_closed(self) -> bool:
        """Whether none is admitted."""

    def running(self) -> int:
        """How many requests can still run a step."""


class GateClosed(RuntimeError):
    """A request came while the gate was closed."""


class Gate:
    """Counts requests as they pass. `abort` asks those inside to stop (`aborting`); `wait` lets them end.

    `with gate.request(): ...` around everything that may touch the engine's memory.
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
        """Inside, a request is in flight; GateClosed where none is admitted."""
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
        """No request is admitted; those inside are asked to stop where the mode is abort."""
        with self._lock:
            self._mode = mode

    def open(self) -> None:
        """Requests are admitted."""
        with self._lock:
            self._mode = None

    def is_closed(self) -> bool:
        """Whether none is admitted."""
        return self._mode is not None

    def running(self) -> int:
        """How many are inside."""
        return self._running
