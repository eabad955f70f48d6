"""What engines should serve, named for all of them at once and taken back for all: of a fleet whose driver ends in the
middle none is left with another version than the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..core.errors import GuardRefused
from ..core.frozen import replace
from ..core.record import Desired, Record
from ..core.sources import Source
from ..rules.desired import desired_unless_touched, known_source, set_desired, untouched
from ..rules.quarantine import quarantine_of
from ..rules.weights import invalid_weights
from .session import NotSaved, Session, commit_together


def set_all(wanted: Sequence[tuple[Session, Source]]) -> Mapping[str, GuardRefused]:
    """From here on each engine should serve what its source brings; nothing changed where that could not be kept.

    Returns the refusal of each engine, by name, where it could not; none where it was.
    """
    records = [(session, set_desired(session.record, source, session.capabilities)) for session, source in wanted]
    try:
        commit_together(records, "must")
    except NotSaved as problem:
        refused = {session.name: session.not_kept(problem, "set_desired") for session, _ in wanted}
        for each in refused.values():
            each.__cause__ = problem
        return refused
    return {}


def roll_back_all(before: Sequence[tuple[Session, Desired]]) -> None:
    """Each engine should serve what it did before; where that cannot be kept it is logged."""
    commit_together([(session, _rolled_back(session, desired)) for session, desired in before], "try")


def take_back_all(before: Sequence[tuple[Session, Record]]) -> None:
    """Each engine should serve what it did before, where memory and weights of none were changed since."""
    if all(untouched(session.record, then) for session, then in before):
        commit_together([(session, desired_unless_touched(session.record, then)) for session, then in before], "try")


def _rolled_back(session: Session, before: Desired) -> Record:
    """As it is where that is still valid, else with what it can be rolled back to.

    Where there is nothing to fall back to, what was loaded or named for the window has to do. One in quarantine is to
    serve what its fleet does, or nothing.
    """
    record, named = session.record, session.record.desired.source
    record = replace(record, desired=replace(before, rollback_source=record.desired.rollback_source))
    # What was loaded since then comes last: it may have been loaded into some of the engines alone.
    again = known_source(before, session.capabilities) or record.desired.rollback_source or named
    in_ring = quarantine_of(record) is None
    if again is not None and in_ring and invalid_weights(record, session.capabilities) is not None:
        record = set_desired(record, again, session.capabilities)
    return record
