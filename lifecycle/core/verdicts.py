"""What a proof says: a verdict with its reason, and the condition it leaves on the engine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .facts import Grade, Tag
from .frozen import EMPTY, freeze_fields

#: The figure by which a verdict on idleness says that requests run: a step of theirs can come, or has begun. Requests
#: that only wait or are held are none, nor is anything else for which an engine counts as busy.
REQUESTS_RUN = "requests_run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer of one proof; `figures` are the numbers it rests on (bytes, pids, counts)."""

    reason: str = ""
    figures: Mapping[str, Any] = EMPTY
    word: ClassVar[str] = ""

    def __post_init__(self) -> None:
        freeze_fields(self, "figures")

    def __str__(self) -> str:
        return f"{self.word}: {self.reason}" if self.reason else self.word


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved(Verdict):
    """The claim holds, known at this grade."""

    grade: Grade
    word: ClassVar[str] = "proved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending(Verdict):
    """The claim does not hold yet; asking again may find that it does."""

    word: ClassVar[str] = "pending"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuted(Verdict):
    """The claim does not hold, and waiting will not change that.

    `denied` are tags of which it is thereby unknown whether they are mapped, though no call was about them.
    """

    denied: frozenset[Tag] = frozenset()
    word: ClassVar[str] = "refuted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmeasurable(Verdict):
    """Nothing here can see whether the claim holds; `reason` says what would help."""

    word: ClassVar[str] = "unmeasurable"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotApplicable(Verdict):
    """The claim says nothing about this engine or this command."""

    word: ClassVar[str] = "not applicable"


@dataclass(frozen=True, slots=True)
class Condition:
    """A verdict that hangs on an engine beside its state.

    `at_s` is when it was reached, in seconds of this process's monotonic clock. It is not kept in a store, where it
    would mean nothing: None says that an earlier process reached the verdict.
    """

    verdict: Verdict
    at_s: float | None = field(default_factory=time.monotonic, compare=False)


def holds(verdict: Verdict, least: Grade) -> bool:
    """True where the claim may be entered: proved at `least`, without object, or known no better by consent."""
    match verdict:
        case Proved(grade=grade):
            return grade >= least
        case NotApplicable():
            return True
        case Unmeasurable():
            return least <= Grade.ACKNOWLEDGED
    return False


def on_deadline(verdict: Verdict, deadline_s: float) -> Verdict:
    """The verdict once no time is left: what was still pending is refuted."""
    if isinstance(verdict, Pending):
        return Refuted(reason=f"{verdict.reason} (after {deadline_s:.1f} s)", figures=verdict.figures)
    return verdict


def below_grade(verdict: Verdict, least: Grade, deadline_s: float) -> Verdict:
    """Why a claim was not entered: what was proved at too low a grade is not called proved."""
    if isinstance(verdict, Proved):
        short = f"only {verdict.grade.name.lower()}, and {least.name.lower()} is asked for (Policy.accept)"
        return Unmeasurable(reason=f"{verdict.reason}; {short}" if verdict.reason else short, figures=verdict.figures)
    return on_deadline(verdict, deadline_s)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict that says the least good of them."""
    for kind in (Refuted, Unmeasurable, Proved):
        found = next((verdict for verdict in verdicts if isinstance(verdict, kind)), None)
        if found is not None:
            return found
    return verdicts[0] if verdicts else Unmeasurable(reason="its processes are not known")
