"""Overriding a state: what a person may assert of an engine that nothing here can observe."""

from __future__ import annotations

from ..core.errors import EngineBusy
from ..core.states import RING, State
from ..core.transition import Transition
from ..rules.knowledge import asserted
from .edge import Edge
from .session import Session

COMMAND = "override_state"


def override(session: Session, state: State, *, by: str, reason: str, version: str | None = None) -> Transition:
    """The engine is taken to be in `state`, with weights of `version`, and every fact of it is graded *asserted*."""
    _check(session, state, by, reason, version)
    if session.state is state:  # it was observed to be there, with weights of which nothing is known
        session.go("contradicted", command=COMMAND, reason=f"{by} says which weights it has: {reason}")
    record = asserted(session.record, state, session.capabilities, session.policy.pause_mode, version)
    transition = session.commit(record, Edge(f"asserted_{state}", reason=f"asserted by {by}: {reason}"))
    assert transition is not None
    return transition


def _check(session: Session, state: State, by: str, reason: str, version: str | None) -> None:
    """Raises where this may not be asserted: EngineBusy, InvalidTransition, or ValueError for a wrong argument."""
    holder = session.holder()
    if holder is not None:
        raise EngineBusy(holder, **session.about(COMMAND))
    weights_alone = version is not None and session.state is state and _weights_unknown(session)
    if state not in RING or not (session.state is State.FAILED or weights_alone):
        raise session.not_allowed(COMMAND)
    if session.record.uncertain.needs_barrier:
        raise session.not_allowed(COMMAND, "; what was sent before may still run")
    if not by.strip() or not reason.strip():
        raise ValueError("an override needs the name of who makes it (by=) and a reason (reason=)")
    if version is not None and state is State.RELEASED:
        raise ValueError("a released engine has no weights: leave version= out, and update it once they are restored")
    if version is not None and not version.strip():
        raise ValueError(f"version must be the label of the weights that it has, got {version!r}")


def _weights_unknown(session: Session) -> bool:
    """Whether nothing is known of any of its weights. What is known to be garbage stays so."""
    return all(session.facts.contents.get(tag) is None for tag in session.capabilities.stage("weights"))
