"""The library with one of its guards, proofs or barriers taken out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from observed_engine import ObservedAdapter

from lifecycle import Engine, Proved
from lifecycle.core import deadline, facts
from lifecycle.core.facts import Grade
from lifecycle.engine import attempt
from lifecycle.engine.session import Session
from lifecycle.fleet import move as moves
from lifecycle.fleet.course import Outcome
from lifecycle.fleet.move import Move
from lifecycle.rules import machine, table
from lifecycle.rules.knowledge import measured, observed
from lifecycle.rules.table import Operation

Patch = Callable[..., None]


def with_table(patch: Patch, change: Callable[[Operation], Operation]) -> None:
    """The table's rows are changed, and the machine is compiled anew."""
    rows = tuple(change(row) for row in table.OPERATIONS)
    patch(table, "OPERATIONS", rows)
    patch(machine, "OPERATIONS", rows)
    patch(machine, "_MACHINE", machine._compile())


def without(*names: str) -> Callable[[Patch], None]:
    """These guards and proofs stand in no row."""

    def mutate(patch: Patch) -> None:
        with_table(
            patch,
            lambda row: replace(
                row,
                guards=tuple(each for each in row.guards if each.name not in names),
                proofs=tuple(each for each in row.proofs if each.name not in names),
            ),
        )

    return mutate


def memory_always_returned(patch: Patch) -> None:
    """The proofs of a release say yes without looking."""

    def believing(proof: Any) -> Any:
        if proof.name not in ("memory_returned", "tags_unmapped"):
            return proof
        figures = {"returned_bytes": 0, "expected_bytes": 0, "resident_bytes": 0, "devices": 1}
        return replace(proof, check=lambda context: Proved(grade=Grade.MEASURED, reason="believed", figures=figures))

    with_table(patch, lambda row: replace(row, proofs=tuple(map(believing, row.proofs))))


def no_barrier(patch: Patch) -> None:
    """The barrier says that it has returned, and has asked nothing."""

    async def asks_nothing(self: Any, *, deadline_s: float) -> bool:
        return True

    patch(ObservedAdapter, "barrier", asks_nothing)


def no_doubt(patch: Patch) -> None:
    """What a lost call was about stays known as it was."""
    patch(facts.Facts, "doubt", lambda self, effect: self)


def others_change_nothing(patch: Patch) -> None:
    """Somebody else's pause or resume says nothing of the memory."""
    patch(observed, "_others_acted", lambda facts, seen: False)


def all_is_mapped(patch: Patch) -> None:
    """Bytes that do not tell the mapping are taken for all that there are."""
    patch(measured.mapping, "mapping_from_resident_bytes", lambda facts, *rest: dict.fromkeys(facts.mapped, True))


def nothing_is_verified(patch: Patch) -> None:
    """A move believes what it knew of the engines that are there already."""

    async def believes(self: Move, engines: Sequence[Engine]) -> None:
        return None

    patch(Move, "_verify", believes)


def no_doubt_and_no_bytes(patch: Patch) -> None:
    """Nor does what is resident keep a release from being sent again."""
    no_doubt(patch)
    bytes_deny_nothing(patch)


def bytes_deny_nothing(patch: Patch) -> None:
    """What is resident neither refuses a command nor says that somebody else moved a tag."""
    without("mapping_borne_out")(patch)
    patch(attempt.knowledge, "moved_unseen", lambda *seen: None)


def never_busy(patch: Patch) -> None:
    """Nobody's claim on an engine is remembered."""
    patch(Session, "busy", property(lambda self: None, lambda self, value: None), raising=False)


def no_settling(patch: Patch) -> None:
    """A command that failed is left where it was."""

    async def leaves(engine: Engine, error: Exception, *rest: Any, **how: Any) -> Exception:
        return error

    patch(attempt, "reconcile_failed", leaves)


def no_deadline(patch: Patch) -> None:
    """Work is given three times the time that there is."""
    patch(deadline.Deadline, "work_s", property(lambda self: max(0.0, 3 * self.total_s - self.elapsed_s)))


def no_phases(patch: Patch) -> None:
    """Each engine of a move goes on by itself, whatever the others do."""
    together = Move._phase

    async def one_by_one(self: Move, move: Any, kind: Any, engines: Sequence[Engine], goals: Any) -> list[Outcome]:
        if kind is not moves.OFFLOAD[0]:
            return await together(self, move, kind, engines, goals)
        first, others = engines[:1], engines[1:]
        for each in moves.OFFLOAD[:-1]:
            await together(self, move, each, first, goals)
        released = await together(self, move, moves.OFFLOAD[-1], first, goals)
        await together(self, move, kind, others, goals)
        return released

    patch(Move, "_phase", one_by_one)


def no_update_on_the_way_home(patch: Patch) -> None:
    """An onload leaves the weights as they came back."""
    patch(moves, "ONLOAD", tuple(kind for kind in moves.ONLOAD if kind.name != "update_weights"))
