"""What is known about an engine: facts, each of which may be unknown, and how well each is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Any, Literal

Tag = str
Stage = Literal["weights", "kv"]
PauseMode = Literal["abort", "wait", "keep", "freeze"]
Admission = Literal["open", "closed"]

PAUSE_MODES: tuple[PauseMode, ...] = ("abort", "wait", "keep", "freeze")


class Grade(IntEnum):
    """How a fact is known, weakest first: said by an operator, answered by a call, reported on request, measured."""

    DECLARED = 0
    ACKNOWLEDGED = 1
    REPORTED = 2
    MEASURED = 3

    @classmethod
    def named(cls, name: str) -> Grade:
        """The grade of this lower-case name; ValueError lists the names."""
        try:
            return cls[name.upper()]
        except KeyError:
            known = ", ".join(grade.name.lower() for grade in cls)
            raise ValueError(f"unknown grade {name!r}: one of {known}") from None


class Fact(StrEnum):
    """The names under which knowledge is kept, and which a call's effect changes.

    The checksum is only asked for: it reads every byte of the weights, which must be mapped.
    """

    BOOT = "boot"
    ADMISSION = "admission"
    PAUSED_BY = "paused_by"
    RUNNING = "running"
    PARKED = "parked"
    MAPPED = "mapped"
    CONTENTS = "contents"
    CACHE_FRESH = "cache_fresh"
    ROUTED = "routed"
    CHECKSUM = "checksum"


@dataclass(frozen=True, slots=True)
class Contents:
    """What the memory of a weights tag holds: its origin, and the version where that is known.

    `launched`: what the process started with. `loaded`: by an update that was acknowledged. `kept`: through a
    release, by the engine's own backup. `garbage`: mapped again, and never written.
    """

    origin: Literal["launched", "loaded", "kept", "garbage"]
    version: str | None = None

    def __str__(self) -> str:
        return self.origin if self.version is None else f"{self.origin}({self.version})"


GARBAGE = Contents("garbage")


@dataclass(frozen=True, slots=True)
class TagSpec:
    """One region of engine memory that is released and restored by name.

    `expected_bytes` is per rank (a rank is one device's share); None: learned in the first proved cycle.
    """

    name: Tag
    stage: Stage
    on_release: Literal["kept", "discarded"]
    expected_bytes: int | None = None


def _frozen(mapping: Mapping[Any, Any]) -> Mapping[Any, Any]:
    return MappingProxyType(dict(mapping))


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known about one process, `boot`; a new boot voids everything. None means unknown."""

    boot: str | None = None
    admission: Admission | None = None
    paused_by: PauseMode | None = None
    running: int | None = None
    parked: int | None = None
    mapped: Mapping[Tag, bool | None] = field(default_factory=lambda: _frozen({}))
    contents: Mapping[Tag, Contents | None] = field(default_factory=lambda: _frozen({}))
    cache_fresh: bool | None = None
    routed: bool | None = None
    grades: Mapping[Fact, Grade] = field(default_factory=lambda: _frozen({}))

    def learn(self, effect: Mapping[Fact, Any], grade: Grade) -> Facts:
        """These facts with `effect` applied; what is said of some tags leaves the other tags as they were."""
        changes: dict[str, Any] = {}
        for fact, value in effect.items():
            old = getattr(self, fact)
            changes[fact] = _frozen({**old, **value}) if isinstance(old, Mapping) else value
        return replace(self, grades=_frozen({**self.grades, **dict.fromkeys(effect, grade)}), **changes)

    def doubt(self, effect: Mapping[Fact, Any]) -> Facts:
        """These facts with all that `effect` would have changed unknown: it may have happened or not."""
        unknown = {fact: dict.fromkeys(value) if isinstance(value, Mapping) else None for fact, value in effect.items()}
        kept = {fact: grade for fact, grade in self.grades.items() if fact not in unknown}
        return replace(self.learn(unknown, Grade.DECLARED), grades=_frozen(kept))

    def unmapped(self) -> frozenset[Tag]:
        """The tags known to be unmapped."""
        return frozenset(tag for tag, mapped in self.mapped.items() if mapped is False)

    def __str__(self) -> str:
        mapped = " ".join(f"{tag}={_mapped_word(value)}" for tag, value in self.mapped.items())
        contents = " ".join(f"{tag}:{value or 'unknown'}" for tag, value in self.contents.items())
        return f"admission={self.admission} running={self.running} {mapped} contents[{contents}]"


def _mapped_word(value: bool | None) -> str:
    return {True: "mapped", False: "unmapped", None: "unknown"}[value]
