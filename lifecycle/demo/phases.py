"""The duration of each phase, from the transitions of the engines."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.calls import Call, Reply
from ..core.observer import BaseObserver
from ..core.requests import RequestFates
from ..core.states import State
from ..core.transition import Transition


@dataclass(slots=True)
class Span:
    """A span of time, in seconds of the monotonic clock."""

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """From start to end."""
        return self.end_s - self.start_s

    def cover(self, other: Span) -> None:
        """Extends this span so that it covers the other one."""
        self.start_s = min(self.start_s, other.start_s)
        self.end_s = max(self.end_s, other.end_s)


class Phases(BaseObserver):
    """Collects the span of every command that succeeded since the last `clear`, for each group and over all of them."""

    def __init__(self) -> None:
        self._spans: dict[tuple[str, str], Span] = {}
        #: How many lifecycle calls were sent; reads are not counted.
        self.calls = 0
        #: What the engines said became of their requests, of every pause that has ended.
        self.fates: list[RequestFates] = []

    def call(self, engine: str, call: Call, reply: Reply, duration_s: float) -> None:
        """Counts a lifecycle call."""
        self.calls += 1

    def clear(self) -> None:
        """Forgets all spans, for a new cycle."""
        self._spans.clear()

    def transition(self, record: Transition) -> None:
        """Notes a command that succeeded, and what became of requests."""
        if record.requests is not None and record.dest is State.SERVING:
            self.fates.append(record.requests)
        if record.command and record.trigger == "succeeded":
            # The duration counts from the start of the command, so `at_s - duration_s` is that start.
            self._spans[record.command, record.group] = self._with(record)

    def _with(self, record: Transition) -> Span:
        span = Span(record.at_s - record.duration_s, record.at_s)
        known = self._spans.get((record.command, record.group))
        if known is not None:
            span.cover(known)
        return span

    def of(self, command: str, group: str) -> Span | None:
        """Returns the span of this command over the engines of this group; None where none of them executed it."""
        return self._spans.get((command, group))

    def durations_s(self) -> dict[str, float]:
        """Returns the seconds of each command over all engines, in the order of their starts."""
        whole: dict[str, Span] = {}
        for (command, _), span in sorted(self._spans.items(), key=lambda item: item[1].start_s):
            whole.setdefault(command, Span(span.start_s, span.end_s)).cover(span)
        return {command: span.duration_s for command, span in whole.items()}
