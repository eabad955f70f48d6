"""A deadline as a value: what is left of it for the work, and what is kept back for settling."""

from __future__ import annotations

import time
from collections.abc import Iterator

#: Seconds that a look at an engine is given even where the deadline has passed: in less none is answered.
LOOK_S = 0.05


class Deadline:
    """`total_s` seconds from now. The last `reserve_s` (at most a quarter) are kept for finding out what happened."""

    __slots__ = ("_begun", "_reserve_s", "total_s")

    def __init__(self, total_s: float, *, reserve_s: float = 0.0) -> None:
        self.total_s = total_s
        self._begun = time.monotonic()
        self._reserve_s = min(reserve_s, total_s / 4)

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began to run."""
        return time.monotonic() - self._begun

    @property
    def left_s(self) -> float:
        """Seconds until it passes, never below 0."""
        return max(0.0, self.total_s - (time.monotonic() - self._begun))

    @property
    def work_s(self) -> float:
        """Seconds left for the work itself, never below 0."""
        return max(0.0, self.left_s - self._reserve_s)

    @property
    def has_passed(self) -> bool:
        """Whether so little is left that no command is given any more. What was given may still be looked at."""
        return self.left_s < LOOK_S

    def look_s(self, share: float = 1.0) -> float:
        """Seconds for one look: this share of what is left, and never less than LOOK_S."""
        return max(LOOK_S, self.left_s * share)


#: How long the phases of a move may take: seconds for each, a deadline for all of them together, or as policies say.
Limit = float | Deadline | None


def seconds(limit: Limit) -> float | None:
    """Seconds for the phase that begins now; None: as the policy says."""
    return limit.look_s() if isinstance(limit, Deadline) else limit


def growing(poll_s: float, *, longest_s: float | None = None) -> Iterator[float]:
    """Seconds to wait before each time that something is asked again: they double, up to `longest_s` (`poll_s`)."""
    step_s = poll_s / 8
    while True:
        yield step_s
        step_s = min(longest_s or poll_s, 2 * step_s)
