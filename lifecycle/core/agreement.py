"""What the ranks of one job tell each other at a barrier, and what keeps one of them from going on. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .errors import AgreementError, PlansDiffer, RankFailed, RankMissing
from .frozen import EMPTY, freeze_fields

#: The most characters of a problem that one rank tells the others.
PROBLEM_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class RankOutcome:
    """What one rank says at one barrier.

    `phase` is what it has ended there, `problem` why that failed (empty: it did not). `plan` is what it is about to do,
    part by part; a part that several ranks name is the same for all of them. `begins`: it is said at the beginning of a
    verb, where nothing was sent yet, and one that is late joins the others where they are now. `vote` is "gave_up"
    where its caller left in the middle, and "missing" where it said nothing in time.
    """

    phase: str = ""
    problem: str = ""
    plan: Mapping[str, str] = EMPTY
    vote: Literal["voted", "gave_up", "missing"] = "voted"
    begins: bool = False

    def __post_init__(self) -> None:
        freeze_fields(self, "plan")
        object.__setattr__(self, "problem", self.problem[:PROBLEM_LIMIT])


#: Of a rank that said nothing in time.
MISSING = RankOutcome(vote="missing")


def why_not(outcomes: Sequence[RankOutcome], rank: int, phase: str) -> list[AgreementError]:
    """What keeps this rank from going on after this phase; empty where all voted for it.

    Where its own vote came too late, that alone is said: the others have gone on without it.
    """
    mine = outcomes[rank]
    if mine.vote == "missing":
        return [RankMissing(rank, phase, late=True)]
    others = [(number, each) for number, each in enumerate(outcomes) if number != rank]
    return [error for number, each in others if (error := _why_not(number, each, mine, phase)) is not None]


def _why_not(rank: int, other: RankOutcome, mine: RankOutcome, phase: str) -> AgreementError | None:
    if other.vote == "missing":
        return RankMissing(rank, phase)
    if other.vote == "gave_up":
        return RankFailed(rank, other.phase, other.problem, gave_up=True)
    if other.problem:
        return RankFailed(rank, other.phase, other.problem)
    if other.phase != mine.phase:
        return PlansDiffer(rank, phase, f"it is at `{other.phase}`, and this rank at `{mine.phase}`")
    parts = [part for part in mine.plan if part in other.plan and other.plan[part] != mine.plan[part]]
    differ = "; ".join(f"{part} is {other.plan[part]} there, and {mine.plan[part]} here" for part in parts)
    return PlansDiffer(rank, phase, differ) if differ else None
