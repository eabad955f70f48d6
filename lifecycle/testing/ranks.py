"""Agreement of ranks that are tasks or threads of one process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from ..core.agreement import MISSING, RankOutcome, why_not
from ..core.deadline import Deadline, growing

#: Seconds between two looks at whether a barrier was decided.
POLL_S = 0.001


def ranks_in_memory(world_size: int) -> list[RankInMemory]:
    """Returns the agreements of all ranks of a job, one for each fleet."""
    barriers = _Barriers(world_size)
    return [RankInMemory(barriers, rank) for rank in range(world_size)]


class _Barriers:
    """The votes of each barrier, by its number and by rank, and what was decided of it."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._lock = threading.Lock()
        self._votes: dict[int, dict[int, RankOutcome]] = {}
        self.decided: dict[int, tuple[RankOutcome, ...]] = {}

    @property
    def open(self) -> int:
        """The barrier at which the ranks are that are in step."""
        return max(self.decided, default=-1) + 1

    def vote(self, number: int, rank: int, outcome: RankOutcome) -> bool:
        """Adds or replaces a vote, where that barrier is not decided; the last one decides it."""
        with self._lock:
            if number in self.decided:
                return False
            votes = self._votes.setdefault(number, {})
            votes[rank] = outcome
            if len(votes) == self.world_size:
                self._decide(number)
            return True

    def close(self, number: int) -> None:
        """Decides a barrier by the votes that are there."""
        with self._lock:
            self._decide(number)

    def _decide(self, number: int) -> None:
        votes = self._votes.get(number, {})
        self.decided.setdefault(number, tuple(votes.get(rank, MISSING) for rank in range(self.world_size)))


class RankInMemory:
    """One rank. `phases` are those on which it voted, in order; `silent` it never votes, as one that was killed."""

    def __init__(self, barriers: _Barriers, rank: int) -> None:
        self._barriers = barriers
        self._next = 0
        self.rank = rank
        self.world_size = barriers.world_size
        self.phases: list[str] = []
        self.silent = False

    async def agree(self, phase: str, outcome: RankOutcome, *, deadline_s: float) -> Sequence[RankOutcome]:
        """Returns the outcomes of all ranks once all voted, or the deadline of one of them has passed."""
        clock, barriers = Deadline(deadline_s), self._barriers
        self.phases.append(phase)
        while True:
            number = self._next
            if not self.silent:
                barriers.vote(number, self.rank, outcome)
            self._next = number + 1
            for step_s in growing(POLL_S, longest_s=POLL_S):
                if number in barriers.decided or not clock.left_s:
                    break
                await asyncio.sleep(step_s)
            barriers.close(number)
            decided = barriers.decided[number]
            late = decided[self.rank].vote == "missing"
            if late:
                self._next = max(self._next, barriers.open)
            if not (late and outcome.begins and clock.left_s):
                return decided

    async def give_up(self, outcome: RankOutcome, *, deadline_s: float) -> None:
        """Replaces a vote on which nothing was decided yet; else votes at the next barrier, if others go there."""
        cast, decided = self._next - 1, self._barriers.decided
        if self.silent or (cast >= 0 and self._barriers.vote(cast, self.rank, outcome)):
            return
        if cast < 0 or outcome.begins or not why_not(decided[cast], self.rank, outcome.phase):
            self._barriers.vote(self._next, self.rank, outcome)
            self._next += 1
