"""The hook for health monitors, which would otherwise kill engines that only sleep."""

from __future__ import annotations

from collections.abc import Callable

from ..core.observer import BaseObserver
from ..core.states import State
from ..core.transition import Transition


class LookAway(BaseObserver):
    """Tells a monitor to look away from the moment an engine leaves serving until it serves again.

    `look_away(engine)` and `look_again(engine)` are given the engine's name; each is called once a window. An engine
    whose process is gone is looked at again: that is what a monitor is for.
    """

    def __init__(self, look_away: Callable[[str], None], look_again: Callable[[str], None]) -> None:
        self._look_away = look_away
        self._look_again = look_again
        self._away: set[str] = set()

    def transition(self, record: Transition) -> None:
        """The monitor looks where it should."""
        back = record.dest in (State.SERVING, State.GONE)
        if back and record.engine in self._away:
            self._away.discard(record.engine)
            self._look_again(record.engine)
        elif not back and record.engine not in self._away and record.source is not State.DETACHED:
            self._away.add(record.engine)
            self._look_away(record.engine)
