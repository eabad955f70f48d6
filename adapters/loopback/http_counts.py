"""Counts of HTTP requests: begun, in progress, and answered, by path and method."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

#: The path and the method of a request.
Call = tuple[str, str]


@dataclass(slots=True)
class HttpCounts:
    """Used on the event loop only. `answers` also have the status, and count once an answer has ended."""

    begun: Counter[Call] = field(default_factory=Counter)
    active: Counter[Call] = field(default_factory=Counter)
    answers: Counter[tuple[str, str, int]] = field(default_factory=Counter)
