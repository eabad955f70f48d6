"""What is known about an engine: facts, each of which may be unknown, and how well each is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import lru_cache
from typing import Any, Literal

from .frozen import EMPTY, FrozenMap, freeze_fields, replace

Tag = str
Stage = Literal["weights", "kv"]
PauseMode = Literal["abort", "wait", "keep", "freeze"]
Admission = Literal["open", "closed"]

PAUSE_MODES: tuple[PauseMode, ...] = ("abort", "wait", "keep", "freeze")


class Grade(IntEnum):
    """How a fact is known, weakest first: asserted by an operator, acknowledged by a call's answer, reported by the
    engine on request, measured from outside. `DECLARED` is the deprecated name of `ASSERTED`.
    """

    ASSERTED = 0
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


class SizeGrade(IntEnum):
    """How the size of a tag is known, worst first.

    `REPORTED`: the engine says so; SGLang takes how far free memory fell during the load, other processes included.
    `TENSORS`: the bytes of its tensors by rank, from the checkpoint, from their shapes, or as the caller gives them.
    `MEASURED`: seen to come back in an earlier proved release of this process.
    """

    REPORTED = 0
    TENSORS = 1
    MEASURED = 2


class Fact(StrEnum):
    """The names under which knowledge is kept, and which a call's effect changes.

    Two are only asked for. The checksum reads every byte of the weights, which must be mapped. `CLOSED` is asked beside
    `ADMISSION` where it matters that the engine says itself that it is closed, and not only that it does not say that
    it is open.
    """

    BOOT = "boot"
    ADMISSION = "admission"
    PAUSED_BY = "paused_by"
    RUNNING = "running"
    MAPPED = "mapped"
    CONTENTS = "contents"
    CACHE_FRESH = "cache_fresh"
    ROUTED = "routed"
    CHECKSUM = "checksum"
    CLOSED = "closed"


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

    `on_release` says what becomes of its contents. `as_wanted`: the engine keeps or discards them as a release wants
    it (`rules.weights.is_kept`). `on_host`: what is kept takes memory of the engine's host.
    `expected_bytes` is per rank (a rank is one device's share), known as well as `size_grade` says; None: learned in
    the first proved cycle. One that is only reported is a hint, and the first proved cycle replaces it.
    """

    name: Tag
    stage: Stage
    on_release: Literal["kept", "discarded", "as_wanted"]
    expected_bytes: int | None = None
    size_grade: SizeGrade = SizeGrade.TENSORS
    on_host: bool = True


@dataclass(frozen=True, slots=True)
class Basis:
    """What a fact is known by.

    `cause` is the last call or act that could have changed it, by name. `read_at_s` is when it was read, in seconds of
    this process's monotonic clock; None where nothing was read, or an earlier process read it.
    """

    grade: Grade
    cause: str = ""
    read_at_s: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known about one process, `boot`; a new boot voids everything. None means unknown.

    `basis` says what each fact is known by. Only `lifecycle.rules.knowledge` makes facts known or unknown.
    """

    boot: str | None = None
    admission: Admission | None = None
    paused_by: PauseMode | None = None
    running: int | None = None
    mapped: Mapping[Tag, bool | None] = EMPTY
    contents: Mapping[Tag, Contents | None] = EMPTY
    cache_fresh: bool | None = None
    routed: bool | None = None
    basis: Mapping[Fact, Basis] = EMPTY

    def __post_init__(self) -> None:
        freeze_fields(self, "mapped", "contents", "basis")

    @property
    def grades(self) -> Mapping[Fact, Grade]:
        """How well each known fact is known."""
        return FrozenMap({fact: basis.grade for fact, basis in self.basis.items()})

    def learn(
        self, effect: Mapping[Fact, Any], grade: Grade, *, cause: str = "", read_at_s: float | None = None
    ) -> Facts:
        """These facts with `effect` applied; what is said of some tags leaves the other tags as they were."""
        if not effect:
            return self
        known = dict.fromkeys(effect, _unread(grade, cause) if read_at_s is None else Basis(grade, cause, read_at_s))
        return replace(self, basis=FrozenMap({**self.basis, **known}), **self._applied(effect))

    def doubt(self, effect: Mapping[Fact, Any]) -> Facts:
        """These facts with all that `effect` would have changed unknown: it may have happened or not."""
        unknown = {fact: dict.fromkeys(value) if isinstance(value, Mapping) else None for fact, value in effect.items()}
        kept = {fact: basis for fact, basis in self.basis.items() if fact not in unknown}
        return replace(self, basis=FrozenMap(kept), **self._applied(unknown))

    def _applied(self, effect: Mapping[Fact, Any]) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        for fact, value in effect.items():
            old = getattr(self, fact)
            changes[fact] = FrozenMap({**old, **value}) if isinstance(old, FrozenMap) else value
        return changes

    def unmapped(self) -> frozenset[Tag]:
        """The tags known to be unmapped."""
        return frozenset([tag for tag, mapped in self.mapped.items() if mapped is False])

    def __str__(self) -> str:
        mapped = " ".join(f"{tag}={_mapped_word(value)}" for tag, value in self.mapped.items())
        contents = " ".join(f"{tag}:{value or 'unknown'}" for tag, value in self.contents.items())
        return f"admission={self.admission} running={self.running} {mapped} contents[{contents}]"


@lru_cache(maxsize=1024)
def _unread(grade: Grade, cause: str) -> Basis:
    """What a fact is known by that was not read: all that are known alike share it."""
    return Basis(grade, cause)


def _mapped_word(value: bool | None) -> str:
    return {True: "mapped", False: "unmapped", None: "unknown"}[value]
