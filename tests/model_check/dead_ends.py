"""Dead ends: an engine lives, and neither `recover` nor `onload` brings it to serving.

One counts as such only where two truths that were reached give the same evidence: then nobody can tell which is so, and
an operator has to. Where what is seen fits one truth alone, it is a fault of the library.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DeadEnd:
    """One engine that was left so: what is known and seen of it, what is true of it, and how it came to that."""

    name: str
    evidence: str
    truth: str
    story: str
    path: tuple[int, ...] = ()


@dataclass(slots=True)
class DeadEnds:
    """All that a walk came to, by evidence and truth; the first story of each."""

    found: dict[str, dict[str, DeadEnd]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.found)

    def take(self, ends: Iterable[DeadEnd]) -> None:
        """These were come to."""
        for end in ends:
            self.found.setdefault(end.evidence, {}).setdefault(end.truth, end)

    def decided(self) -> Iterator[DeadEnd]:
        """Those of which what is seen fits one truth alone."""
        for truths in self.found.values():
            if len(truths) == 1:
                yield from truths.values()

    def undecided(self) -> Iterator[tuple[str, list[DeadEnd]]]:
        """Those of which it fits several, by name."""
        for truths in self.found.values():
            if len(truths) > 1:
                ends = list(truths.values())
                yield ends[0].name, ends
