"""Admission of requests to an engine in this process: requests pass a gate, which counts them and can be closed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lifecycle.core.capabilities import PauseTraits
from lifecycle.core.facts import PauseMode
from lifecycle.core.requests import RequestCounts


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


@runtime_checkable
class CountsEnds(Protocol):
    """What an `InFlight` may have beside the port: it counts how its requests ended."""

    def counts(self, boot: str) -> RequestCounts:
        """What was counted of requests until now, by the engine with this boot."""


class GateClosed(RuntimeError):
    """A request arrived while admission was stopped."""


@dataclass(slots=True)
class _Request:
    """One request inside the gate. `stopping`: it asked whether it should stop, and should."""

    stopping: bool = False


_inside: ContextVar[_Request | None] = ContextVar("the request that asks", default=None)


class Gate:
    """Counts the requests in flight. The mode `abort` asks them to stop (`aborting`); `wait` lets them finish.

    `with gate.request(): ...` must enclose everything that may touch the engine's memory. A request that asks
    `aborting` itself, and is told to stop, counts as aborted. Of one that ends while others are told to, without having
    asked, it is not known whether it was finished.
    """

    modes: Mapping[PauseMode, PauseTraits] = {"abort": PauseTraits(drains=True), "wait": PauseTraits(drains=True)}

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._mode: PauseMode | None = None
        self._ends: Counter[str] = Counter()

    @property
    def aborting(self) -> bool:
        """Whether a request in flight should stop at its next step."""
        asking, aborting = _inside.get(), self._mode == "abort"
        if aborting and asking is not None:
            asking.stopping = True
        return aborting

    @contextmanager
    def request(self) -> Iterator[None]:
        """Counts a request as in flight for the length of the context. Raises GateClosed while admission is stopped."""
        with self._lock:
            if self._mode is not None:
                self._ends["refused"] += 1
                raise GateClosed("the engine is paused; its fleet resumes it")
            self._running += 1
        request, failed = _Request(), True
        outer = _inside.get()
        _inside.set(request)
        try:
            yield
            failed = False
        finally:
            _inside.set(outer)
            with self._lock:
                self._running -= 1
                self._ends[self._end(request, failed=failed)] += 1

    def _end(self, request: _Request, *, failed: bool) -> str:
        if request.stopping:
            return "aborted"
        if failed:
            return "failed"
        return "doubtful" if self._mode == "abort" else "finished"

    def counts(self, boot: str) -> RequestCounts:
        """What was counted of requests until now, by the engine with this boot."""
        with self._lock:
            ends = Counter(self._ends)
            open_now = self._running
        refused = ends.pop("refused", 0)
        return RequestCounts(
            "engine",
            boot,
            ended=ends.total(),
            finished=ends["finished"],
            doubtful=(ends["doubtful"],),
            aborted=ends["aborted"],
            refused=refused,
            open=open_now,
        )

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
