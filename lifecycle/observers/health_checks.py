"""The hook for health checks, which would otherwise kill engines that only sleep."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from ..core.observer import BaseObserver
from ..core.states import State
from ..core.transition import Transition


class HealthCheckPause(BaseObserver):
    """Suspends the health check of an engine from the moment it leaves serving until it serves again.

    `suspend(engine)` and `resume(engine)` are given the engine's name; each is called once a window. The check of an
    engine whose process is gone is resumed: that is what a health check is for.
    """

    def __init__(self, suspend: Callable[[str], None], resume: Callable[[str], None]) -> None:
        self._suspend = suspend
        self._resume = resume
        self._suspended: set[str] = set()

    def transition(self, record: Transition) -> None:
        """The health check of this engine is suspended or resumed, where it has to be."""
        back = record.dest in (State.SERVING, State.GONE)
        if back and record.engine in self._suspended:
            self._suspended.discard(record.engine)
            self._resume(record.engine)
        elif not back and record.engine not in self._suspended and record.source is not State.DETACHED:
            self._suspended.add(record.engine)
            self._suspend(record.engine)


class LookAway(HealthCheckPause):
    """Deprecated name of `HealthCheckPause`."""

    def __init__(self, look_away: Callable[[str], None], look_again: Callable[[str], None]) -> None:
        warnings.warn("LookAway is now HealthCheckPause(suspend, resume)", DeprecationWarning, stacklevel=2)
        super().__init__(look_away, look_again)
