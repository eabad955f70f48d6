"""Faults that the library once had, or could have: each put back for a test, which says where the explorer finds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mutants
from mutants import Patch, without
from parts import TrueAdapter
from scenarios import TWO_NAMES

from lifecycle.core.facts import Basis, Fact, Facts, Grade
from lifecycle.engine import attempt, gather, group_commit, reconcile
from lifecycle.engine.attempt import Attempt
from lifecycle.engine.owner import Owner
from lifecycle.engine.session import Session
from lifecycle.fleet import connect
from lifecycle.fleet import move as moves
from lifecycle.rules import contradiction, identity
from lifecycle.rules.knowledge import kept, observed
from lifecycle.store import lease_table


@dataclass(frozen=True, slots=True)
class PutBack:
    """A fault: in which scenario it is found, with how many deviations and engines, and what is said of it."""

    put_back: Callable[[Patch], None]
    scenario: str
    says: str
    budget: int = 1
    engines: int = 1


# two drivers


def nobody_is_kept_away(patch: Patch) -> None:
    """A lease refuses nobody."""
    patch(lease_table, "_is_taken", lambda row: False)
    patch(Owner, "other", lambda self, boot: None)


# the age of evidence


def nothing_is_verified(patch: Patch) -> None:
    """A move believes what was known of the engines that are there already."""

    async def believes(*engines: Any, **how: Any) -> None:
        return None

    patch(moves, "verify_all", believes)


def nothing_is_asked_anew(patch: Patch) -> None:
    """What a command observes before it sends anything denies nothing."""

    async def denies_nothing(self: Attempt, evidence: Any) -> None:
        return None

    patch(Attempt, "_deny", denies_nothing)
    without("still_idle")(patch)


# identity


def every_process_is_the_same(patch: Patch) -> None:
    """A process that has taken the place of another counts as that one."""
    for module in (identity, contradiction, reconcile, observed):
        if hasattr(module, "same_process"):
            patch(module, "same_process", lambda one, other: True)
    patch(identity, "compare", lambda one, other: "same")


def one_look_is_enough(patch: Patch) -> None:
    """Whoever answered last is the engine: one look at another process says that the first has ended."""

    async def believes(session: Session, seen: Any, deadline: Any, *, looks: int) -> Any:
        return seen

    patch(reconcile, "_confirmed_alone", believes)


def no_look_in_a_release(patch: Patch) -> None:
    """Where the memory cannot be read between two calls, whoever answers is taken for the engine."""
    patch(gather, "other_process", lambda facts, seen: None)


def closed_after_a_resume(patch: Patch) -> None:
    """An engine that was acknowledged to be open, answers nobody and is closed, is as it was before."""
    others_acted = observed._others_acted

    def explained(facts: Facts, seen: Any) -> bool:
        return others_acted(facts, seen) and not (facts.admission is None and seen.admission == "closed")

    patch(observed, "_others_acted", explained)


def a_restart_is_not_seen(patch: Patch) -> None:
    """The engine names no boot of its own, so that nothing tells a process from the one that has taken its place."""
    seen = TrueAdapter._seen

    def without_boot(self: TrueAdapter, model: Any, want: frozenset[Fact]) -> Any:
        found = seen(self, model, want)
        return found if found.boot is None else type(found)(**{**_fields(found), "boot": "the one"})

    patch(TrueAdapter, "_seen", without_boot)


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def one_engine_twice(patch: Patch) -> None:
    """Nobody looks whether two engines of a fleet are one, and no lease tells them apart."""
    patch(connect, "check_distinct", lambda engines: None)
    nobody_is_kept_away(patch)


# a driver that dies, and calls without an answer


def nothing_is_intended(patch: Patch) -> None:
    """A call that cannot be repeated is not written down before it is sent, and what was kept counts as measured."""
    patch(group_commit, "needs_intent", lambda each: False)
    patch(kept, "interrupted", lambda record: record)
    patch(kept, "Basis", lambda grade, cause: Basis(Grade.MEASURED, cause))


def no_barrier(patch: Patch) -> None:
    """The barrier says that it has returned, and has asked nothing."""

    async def asks_nothing(self: Any, *, deadline_s: float) -> bool:
        return True

    patch(TrueAdapter, "barrier", asks_nothing)


def attached_before_the_barrier(patch: Patch) -> None:
    """What was seen before the barrier counts after it."""
    met = reconcile._met
    first: dict[int, Any] = {}

    async def the_first(session: Session, seen: Any, kept: Any, deadline: Any) -> Any:
        if id(session) not in first:
            first[id(session)] = (session, await met(session, seen, kept, deadline))
        return first[id(session)][1]

    patch(reconcile, "_met", the_first)


def a_lost_call_is_repeated(patch: Patch) -> None:
    """Nothing is doubted after a call without an answer, and bytes keep nothing from being sent again."""
    patch(Facts, "doubt", lambda self, effect: self)
    mutants.bytes_deny_nothing(patch)


def a_cancelled_drain_is_failed(patch: Patch) -> None:
    """A drain that was given up leaves the engine failed, though nothing was sent."""

    async def given_up(self: Attempt, error: BaseException) -> None:
        self.session.go("failed", command=self.command.name, reason="given up")

    patch(Attempt, "_given_up", given_up)


def a_reading_is_not_made_again(patch: Patch) -> None:
    """A reading that could not be made counts as what is to be known of the memory."""
    patch(attempt, "residual_again", gather.residual)
    patch(attempt, "unread_by", lambda *asked: False)
    patch(attempt, "_unread", lambda *asked: False)


PUT_BACK: dict[str, PutBack] = {
    "two drivers: the lease keeps nobody away": PutBack(nobody_is_kept_away, "two drivers", "inside a command"),
    "two drivers, two stores: the lease keeps nobody away": PutBack(
        nobody_is_kept_away, "two drivers, two stores", "inside a command"
    ),
    "age: an offload verifies nothing": PutBack(nothing_is_verified, "a second look", "next tenant"),
    "age: a command asks nothing anew": PutBack(nothing_is_asked_anew, "somebody else acts", ""),
    "an outside actor: who closed it may have released it": PutBack(
        mutants.others_change_nothing, "somebody else acts", ""
    ),
    "identity: a new process counts as the old one": PutBack(every_process_is_the_same, "engines end", ""),
    "identity, A-x-A: one answer of another process is a restart": PutBack(
        one_look_is_enough, "faults of calls", "says of e0"
    ),
    "identity: a look between two calls of a release is not compared": PutBack(
        no_look_in_a_release, "engines end", "released while requests ran"
    ),
    "an outside actor: who closed it after its resume": PutBack(closed_after_a_resume, "somebody else acts", "e0"),
    "identity: one engine under two names": PutBack(one_engine_twice, TWO_NAMES, "says of e0", budget=0),
    "identity: the boot is not asked": PutBack(a_restart_is_not_seen, "engines end", ""),
    "a crash between call and record: no intent": PutBack(nothing_is_intended, "a driver is killed", ""),
    "a late effect of a driver that was killed: no barrier": PutBack(no_barrier, "a driver is killed", ""),
    "a late effect of a cancelled call: no barrier": PutBack(no_barrier, "a caller gives up", ""),
    "a late effect: what was seen before the barrier counts": PutBack(
        attached_before_the_barrier, "a driver is killed", "says of e0"
    ),
    "a repeated call: what a lost one did is not doubted": PutBack(
        a_lost_call_is_repeated, "faults of calls", "was not released"
    ),
    "memory: the proofs of a release ask nothing": PutBack(
        mutants.memory_always_returned, "faults of calls", "next tenant"
    ),
    "a cancelled drain counts as failed": PutBack(a_cancelled_drain_is_failed, "a caller gives up", "was left failed"),
    "phases: an engine is released before all are drained": PutBack(
        mutants.no_phases, "faults of calls", "is not drained", budget=0, engines=2
    ),
    "memory: a reading that could not be made is not made again": PutBack(
        a_reading_is_not_made_again, "faults of calls", "a reading that could not be made"
    ),
    "no deadline is kept": PutBack(mutants.no_deadline, "faults of calls", "has run for"),
}
