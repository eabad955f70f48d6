"""Agreement of ranks through a store of torch.distributed, such as the TCPStore that a job has already.

Each barrier has a number. A rank writes its vote, once, under the number and its rank. Whoever sees all votes, or is
at its deadline, writes the decision under the number: the votes that it saw. Only the first one is written
(`compare_set`), and every rank acts on the one that stands there. So the ranks that can reach the store never take a
barrier differently, however late they are: a rank that votes after the decision is missing in it, to itself too.

A rank that is killed after its vote has voted; the others find it missing at the next barrier. One whose process was
replaced begins at the barrier where the others are, and never votes in one that was decided. Where the store cannot be
reached, what was decided is not known, and that is what is said. gloo's own barrier waits for half an hour; here every
question is made in a thread, and is given up at the caller's deadline.

The store has to outlive the ranks for the others to learn of one's end: where rank 0 hosts it and is killed, no rank
knows what was decided. torchrun's agent hosts one (`TORCHELASTIC_USE_AGENT_STORE`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from lifecycle.core.agreement import RankOutcome, why_not
from lifecycle.core.deadline import Deadline, growing
from lifecycle.core.errors import AgreementLost, ConfigurationError
from lifecycle.nodes.in_thread import in_thread
from lifecycle.nodes.processes import node_name

from .barriers import decision_of, outcomes_in, text_of

T = TypeVar("T")

#: Seconds between two looks at the store: they double from the first to the last.
FIRST_POLL_S, LAST_POLL_S = 0.001, 0.1
#: The part of a deadline that is kept for deciding, at most a quarter of it.
DECIDE_S = 0.5
#: A decision this many barriers back is deleted: no rank is so late.
KEPT = 1000


class Store(Protocol):
    """What is used of a `torch.distributed.Store`."""

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes:
        """Writes `desired` where the value is `expected` (empty: where there is none); the value that stands there."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all of these keys have values."""

    def get(self, key: str, /) -> bytes:
        """The value of a key that has one."""

    def set(self, key: str, value: str, /) -> None:
        """The key has this value."""

    def delete_key(self, key: str, /) -> bool:
        """The key has no value."""


class _Stopped(Exception):
    """The caller does not wait any more."""


class StoreAgreement:
    """One rank of a job whose processes share a store.

    `name` tells agreements in one store apart; by default those of one attempt of torchrun. `rejoins`: this process
    takes the place of one of the same rank that has ended, and which cannot vote from then on.
    """

    def __init__(
        self, store: Store, *, rank: int, world_size: int, name: str | None = None, rejoins: bool = False
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigurationError(f"rank={rank} of world_size={world_size}: ranks are 0 to world_size - 1")
        self.rank = rank
        self.world_size = world_size
        self._given = store  # it may be the server, which ends with it
        self._store = _own_connection(store)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._prefix = f"lifecycle/{attempt if name is None else name}"
        self._who = f"{node_name()} pid {os.getpid()} ({uuid4().hex[:8]})"
        self._rejoins = rejoins
        self._joined = False
        self._next = 0
        #: The last vote of this rank and the number of its barrier, until that is known to be decided.
        self._cast: tuple[int, str] | None = None
        self._lock = threading.Lock()

    @classmethod
    def connect(
        cls,
        host: str,
        port: int,
        *,
        rank: int,
        world_size: int,
        hosts: bool | None = None,
        deadline_s: float = 60.0,
        name: str | None = None,
        rejoins: bool = False,
    ) -> StoreAgreement:
        """The agreement over a TCPStore at this address, which the process that `hosts` it serves (default: rank 0).

        ConfigurationError where it is not reached in `deadline_s`, or torch is not installed.
        """
        try:
            from torch.distributed import TCPStore
        except ImportError as missing:
            what = "pip install 'engine-lifecycle[torch]', or pass a store of your own: StoreAgreement(store, ...)"
            raise ConfigurationError(f"a TCPStore needs torch, which is not installed: {what}") from missing
        serves = rank == 0 if hosts is None else hosts
        try:
            store: Any = TCPStore(
                host, port, is_master=serves, timeout=timedelta(seconds=deadline_s), wait_for_workers=False
            )
        except Exception as error:
            who = "this process was to serve it: is the port free?" if serves else "start rank 0, which serves it"
            raise ConfigurationError(f"no TCPStore at {host}:{port} ({_brief(error)}); {who}") from error
        return cls(store, rank=rank, world_size=world_size, name=name, rejoins=rejoins)

    async def agree(self, phase: str, outcome: RankOutcome, *, deadline_s: float) -> Sequence[RankOutcome]:
        """Votes, and returns the outcomes of all ranks as they were decided."""
        clock = Deadline(deadline_s, reserve_s=DECIDE_S)
        return await self._asked(partial(self._agree, outcome, clock), clock, phase)

    async def give_up(self, outcome: RankOutcome, *, deadline_s: float) -> None:
        """Says this to the others, without waiting for them."""
        clock = Deadline(deadline_s)
        await self._asked(partial(self._leave, outcome), clock, outcome.phase)

    async def _asked(self, ask: Callable[[threading.Event], T], clock: Deadline, phase: str) -> T:
        """What the store answers, in a thread: within the deadline, or AgreementLost."""
        stop = threading.Event()

        def one_by_one() -> T:
            if not self._lock.acquire(timeout=clock.left_s):
                raise TimeoutError("it has not answered what it was asked before")
            try:
                return ask(stop)
            finally:
                self._lock.release()

        try:
            return await in_thread(one_by_one, deadline_s=clock.left_s)
        except (AgreementLost, ConfigurationError):
            raise
        except Exception as error:
            why = f"no answer in {clock.total_s:.1f} s" if isinstance(error, TimeoutError) else _brief(error)
            what = f"the store in which the ranks vote cannot be asked ({why}); see whether its server lives"
            raise AgreementLost(self.rank, phase, what) from error
        finally:
            stop.set()

    # what is asked, in a thread

    def _agree(self, outcome: RankOutcome, clock: Deadline, stop: threading.Event) -> tuple[RankOutcome, ...]:
        self._join()
        while True:
            number = self._next
            decision = self._read(f"decision/{number}")
            if decision is None:
                self._vote(number, text_of(outcome, self._who))
                decision = self._decided(number, clock, stop)
            self._next, self._cast = number + 1, None
            self._forget(number)
            decided = outcomes_in(decision, self.world_size)
            late = decided[self.rank].vote == "missing"
            if late:
                self._next = max(self._next, self._where_the_others_are())
            if not (late and outcome.begins and clock.work_s):
                return decided

    def _leave(self, outcome: RankOutcome, _: threading.Event) -> None:
        """Replaces a vote on which nothing was decided yet; else votes at the next barrier, if others go there."""
        self._join()
        text = text_of(outcome, self._who)
        if self._cast is not None:
            number, stands = self._cast
            if self._read(f"decision/{number}") is None:
                self._write_once(f"vote/{number}/{self.rank}", text, stands)
            decision = self._read(f"decision/{number}")
            if decision is None:
                return
            if not outcome.begins and why_not(outcomes_in(decision, self.world_size), self.rank, outcome.phase):
                return
        if self._read(f"decision/{self._next}") is None:
            self._vote(self._next, text)
            self._cast = None

    def _vote(self, number: int, text: str) -> None:
        """This rank's vote stands there. ConfigurationError where another process has voted as this rank."""
        stands = self._write_once(f"vote/{number}/{self.rank}", text)
        if stands != text:
            raise self._taken("another process votes as this rank")
        self._next, self._cast = number + 1, (number, text)
        self._store.set(self._key(f"at/{self.rank}"), str(number))

    def _decided(self, number: int, clock: Deadline, stop: threading.Event) -> str:
        """The decision of this barrier, once there is one; by the votes that are there, once the deadline is near."""
        votes = [self._key(f"vote/{number}/{rank}") for rank in range(self.world_size)]
        for step_s in growing(8 * FIRST_POLL_S, longest_s=LAST_POLL_S):
            decision = self._read(f"decision/{number}")
            if decision is not None:
                return decision
            if self._store.check(votes) or clock.work_s <= 0:
                found = [self._read(f"vote/{number}/{rank}") for rank in range(self.world_size)]
                return self._write_once(f"decision/{number}", decision_of(found))
            if stop.wait(min(step_s, clock.work_s)):
                raise _Stopped
        raise AssertionError("it polls for ever")

    def _join(self) -> None:
        """This process is its rank, in a job of this size. ConfigurationError where it cannot be."""
        if self._joined:
            if self._read(f"rank/{self.rank}") != self._who:
                raise self._taken("another process has taken its place")
            return
        sizes = self._write_once("world_size", f"{self.world_size} {self.rank}").split()
        if sizes[0] != str(self.world_size):
            raise ConfigurationError(
                f"rank {self.rank} was given world_size={self.world_size}, and rank {sizes[1]} {sizes[0]}: "
                "give all ranks of one job the same, or each job a name of its own (name=)"
            )
        stands = self._write_once(f"rank/{self.rank}", self._who)
        if stands != self._who and self._rejoins:
            stands = self._write_once(f"rank/{self.rank}", self._who, stands)
        if stands != self._who:
            raise self._taken(f"{stands} is this rank")
        self._next = max(self._next, self._where_the_others_are())
        self._joined = True

    def _where_the_others_are(self) -> int:
        """The barrier that is open now, or would be next."""
        at = [self._read(f"at/{rank}") for rank in range(self.world_size)]
        newest = max((int(number) for number in at if number is not None), default=0)
        return newest if self._read(f"decision/{newest}") is None else newest + 1

    def _forget(self, number: int) -> None:
        """What no rank reads any more is deleted. Votes of a decided barrier stand in its decision."""
        with suppress(Exception):  # some stores cannot delete
            if number >= 2:
                self._store.delete_key(self._key(f"vote/{number - 2}/{self.rank}"))
            if self.rank == 0 and number >= KEPT:
                self._store.delete_key(self._key(f"decision/{number - KEPT}"))

    def _taken(self, why: str) -> ConfigurationError:
        return ConfigurationError(
            f"rank {self.rank} of {self._prefix!r}: {why}. Give each process a rank of its own, or each job a name "
            "(name=); where the other process has ended and this one takes its place, pass rejoins=True"
        )

    # the store

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def _read(self, name: str) -> str | None:
        key = self._key(name)
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _write_once(self, name: str, value: str, expected: str = "") -> str:
        return self._store.compare_set(self._key(name), expected, value).decode()


def _own_connection(store: Store) -> Store:
    """The store over a connection of its own: while one is waited on, it answers nothing else."""
    clone = getattr(store, "clone", None)
    try:
        return store if clone is None else clone()
    except (NotImplementedError, RuntimeError):
        return store


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
