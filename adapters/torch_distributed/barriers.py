"""Votes and decisions of a barrier as text in a store. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lifecycle.core.agreement import MISSING, RankOutcome


def text_of(outcome: RankOutcome, who: str) -> str:
    """A vote as it is written. `who` votes tells two processes of one rank apart."""
    return json.dumps([_vote(outcome), who])


def decision_of(votes: Sequence[str | None]) -> str:
    """What is written of a barrier with these votes, by rank: that of most ranks once, and those that differ."""
    outcomes = [None if vote is None else json.dumps(json.loads(vote)[0]) for vote in votes]
    most = Counter(each for each in outcomes if each is not None).most_common(1)
    common = most[0][0] if most else None
    differ = {rank: each for rank, each in enumerate(outcomes) if each != common}
    return json.dumps([common, differ])


def outcomes_in(decision: str, world_size: int) -> tuple[RankOutcome, ...]:
    """The outcomes of all ranks, as a barrier was decided."""
    common, differ = json.loads(decision)
    return tuple(_outcome(differ.get(str(rank), common)) for rank in range(world_size))


def _vote(outcome: RankOutcome) -> list[Any]:
    return [outcome.phase, outcome.problem, dict(sorted(outcome.plan.items())), outcome.vote, outcome.begins]


def _outcome(vote: str | None) -> RankOutcome:
    return MISSING if vote is None else RankOutcome(*json.loads(vote))
