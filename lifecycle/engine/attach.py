"""Attaching to an engine: what it can do is read, where it is is found out, and what it can prove is checked."""

from __future__ import annotations

from ..core.deadline import Deadline
from ..core.errors import ConfigurationError, NothingListens
from ..core.facts import Grade
from ..core.policy import ACCEPT
from ..core.ports import EngineAdapter
from ..core.readings import Reading
from ..core.record import Record
from ..core.states import UNCLAIMED, State
from ..core.verdicts import Unmeasurable
from ..nodes.processes import said_ended
from ..rules import knowledge
from .edge import Edge
from .processes import have_ended
from .reconcile import attach
from .session import Session


async def connect(session: Session, *, offloads: bool, deadline_s: float) -> None:
    """The engine was observed: its capabilities are known and its state is what the facts make.

    Raises ConfigurationError where it cannot be driven, or, where it `offloads`, cannot give the evidence that the
    policy asks for.

    One at whose address nothing listens is gone, where every process that it is known to have had has ended.
    One that was observed before is observed anew: what the store has of it now is believed, which another process may
    have written since; without a store, what was known here.
    """
    _check_url(session.adapter)
    deadline = Deadline(deadline_s)
    with session.claimed("connect"):
        try:
            await session.connect(deadline_s=deadline.left_s)
        except NothingListens as silent:
            kept = session.kept() or session.record
            if not await have_ended(session, kept.calibration.processes, deadline):
                raise
            _enter_gone(session, kept, silent)
            return
        known_here = None if session.state is State.DETACHED else session.record
        if session.state not in UNCLAIMED:
            edge = Edge("contradicted", "connect", reason="connect() was asked for again")
            session.commit(session.record, edge, save="no")
        in_ledger = session.tenancy.ledger is not None
        reading = await attach(session, deadline, known_here=known_here, reads=offloads or in_ledger)
        if in_ledger and reading is not None:
            await session.tenancy.attached(session.record, reading, session.policy)
        if offloads:
            _check_evidence(session, reading)


def _enter_gone(session: Session, kept: Record, silent: NothingListens) -> None:
    """The engine is gone: the processes that this record of it names have all ended."""
    session.owner.met(kept.facts.boot)
    if session.state not in UNCLAIMED:
        session.go("contradicted", command="connect", reason=str(silent))
    session.commit(knowledge.ended(kept, session.record))
    session.journal.attached(session.adapter.url, session.group, session.policy)
    reason = said_ended(kept.calibration.processes)
    session.commit(session.record, Edge(f"observed_{State.GONE}", "connect", reason=reason))


def _check_url(adapter: EngineAdapter) -> None:
    url: object = adapter.url
    if not isinstance(url, str) or not url:
        raise ConfigurationError(
            f"{type(adapter).__name__}.url must be a string that is not empty, got {url!r}: what is known of an engine "
            "is kept under it"
        )


def _check_evidence(session: Session, reading: Reading | Unmeasurable | None) -> None:
    """The engine can give the evidence that the policy asks for; ConfigurationError says what it cannot.

    With `unprovable="warn"` it hangs a condition on the engine instead.
    """
    policy = session.policy
    lacking = {
        claim: f"{claim} can only be {best.name.lower()}"
        for claim, best in session.capabilities.evidence.items()
        if claim in ACCEPT and best < policy.least_grade(claim)
    }
    if policy.least_grade("memory_returned") is Grade.MEASURED and isinstance(reading, Unmeasurable):
        lacking["memory_returned"] = f"memory_returned cannot be measured: {reading.reason}"
    if lacking and policy.unprovable == "refuse":
        raise ConfigurationError(
            f"{session.name}: {'; '.join(lacking.values())}. Fix this, or lower Policy.accept for it "
            "(Policy(accept={claim: grade})), or only warn (Policy(unprovable='warn'))"
        )
    for claim, reason in lacking.items():
        session.commit(session.record.with_condition(claim, Unmeasurable(reason=reason)))
