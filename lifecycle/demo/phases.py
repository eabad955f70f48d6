"""How long each phase took, from the edges that the engines went along."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.calls import Call, Reply
from ..core.observer import BaseObserver
from ..core.transition import Transition


@dataclass(slots=True)
class Span:
    """Seconds of the monotonic clock."""

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """From the first start to the last end."""
        return self.end_s - self.start_s

    def cover(self, other: Span) -> None:
        """The span reaches over the other one too."""
        self.start_s = min(self.start_s, other.start_s)
        self.end_s = max(self.end_s, other.end_s)


class Phases(BaseObserver):
    """The span of every command that succeeded since the last `clear`, for each engine and over all of them."""

    def __init__(self) -> None:
        self._spans: dict[tuple[str, str], Span] = {}
        #: Remote calls that changed something, or were to; reads do not count.
        self.calls = 0

    def call(self, engine: str, call: Call, reply: Reply, duration_s: float) -> None:
        """A remote call is counted."""
        self.calls += 1

    def clear(self) -> None:
        """Nothing is known: a new cycle begins."""
        self._spans.clear()

    def transition(self, record: Transition) -> None:
        """A command that ended is noted."""
        if record.command and record.trigger == "succeeded":
            # A record's duration counts from the call, so the start needs no record of its own.
            self._spans[record.command, record.group] = self._with(record)

    def _with(self, record: Transition) -> Span:
        span = Span(record.at_s - record.duration_s, record.at_s)
        known = self._spans.get((record.command, record.group))
        if known is not None:
            span.cover(known)
        return span

    def of(self, command: str, group: str) -> Span | None:
        """The span of this command over the engines of this group; None where none of them did it."""
        return self._spans.get((command, group))

    def durations_s(self) -> dict[str, float]:
        """Seconds of each command over all engines, in the order in which they began."""
        whole: dict[str, Span] = {}
        for (command, _), span in sorted(self._spans.items(), key=lambda item: item[1].start_s):
            whole.setdefault(command, Span(span.start_s, span.end_s)).cover(span)
        return {command: span.duration_s for command, span in whole.items()}
