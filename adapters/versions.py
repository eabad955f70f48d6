"""Tables of versions: ranges of an engine's releases, and what differs between them. Pure.

An adapter has one table. A version outside of all ranges is nobody's knowledge: its adapter refuses it, or warns, and
names the ranges that are known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

Effects = TypeVar("Effects")

#: The numbers of a release, as they compare; what follows them (rc1, .dev3+gabc) is left out.
Release = tuple[int, ...]

_NUMBERS = re.compile(r"v?(\d+(?:\.\d+)*)")


@lru_cache(maxsize=256)
def release_of(version: str) -> Release | None:
    """The numbers with which a version begins; None where it begins with none."""
    found = _NUMBERS.match(version.strip())
    return None if found is None else tuple(int(part) for part in found[1].split(".")[:4])


@dataclass(frozen=True, slots=True)
class VersionRange(Generic[Effects]):
    """Releases from `first` on, up to and without `end`, and their effects.

    `source` says how those are known: what was run, or which released package was read.
    """

    first: str
    end: str
    effects: Effects
    source: str

    def __contains__(self, version: object) -> bool:
        release, first, end = release_of(str(version)), release_of(self.first), release_of(self.end)
        return release is not None and first is not None and end is not None and first <= release < end

    def __str__(self) -> str:
        return f"{self.first} to before {self.end}"


class VersionTable(Generic[Effects]):
    """The ranges of one engine, oldest first. Raises ValueError at once where they overlap or are not in order."""

    def __init__(self, engine: str, ranges: Sequence[VersionRange[Effects]]) -> None:
        self.engine = engine
        self._ranges = tuple(ranges)
        bounds = [release_of(bound) for each in self._ranges for bound in (each.first, each.end)]
        known = [bound for bound in bounds if bound is not None]
        if not known or len(known) < len(bounds) or known != sorted(known):
            raise ValueError(f"the versions of {engine} are not in order: {self.known}")
        if any(each.first == each.end for each in self._ranges):
            raise ValueError(f"a range of versions of {engine} is empty: {self.known}")

    def __iter__(self) -> Iterator[VersionRange[Effects]]:
        return iter(self._ranges)

    @property
    def known(self) -> str:
        """The ranges in words."""
        return ", ".join(str(each) for each in self._ranges)

    def find(self, version: str) -> VersionRange[Effects] | None:
        """The range that has this version; None where none has."""
        return next((each for each in self._ranges if version in each), None)

    def nearest(self, version: str) -> VersionRange[Effects]:
        """The range that has this version, else the last one that begins before it; the first where none does.

        Of a version without numbers (a build from source) the last.
        """
        release = release_of(version)
        if release is None:
            return self._ranges[-1]
        before = [each for each in self._ranges if (release_of(each.first) or ()) <= release]
        return before[-1] if before else self._ranges[0]

    def unknown(self, version: str) -> str | None:
        """Why this version is not known, naming the ranges that are; None where it is."""
        if self.find(version) is not None:
            return None
        return f"{self.engine} {version} is not among the versions that are known here ({self.known})"
