"""Overriding a state: what a person may assert of an engine that nothing here can observe."""

from __future__ import annotations

from ..core.errors import ConfigurationError, EngineBusy
from ..core.states import RING, State
from ..core.transition import Transition
from ..rules.knowledge import asserted, asserted_version
from .edge import Edge
from .session import Session

COMMAND = "override_state"


def override(session: Session, state: State, *, version: str | None = None, by: str, reason: str) -> Transition:
    """The engine is taken to be in `state`, with weights of `version`; every fact of it is graded *asserted*.

    Where its state is known, and only the version of its weights is not, that alone is asserted.
    """
    knows_state = version is not None and session.state is state and _weights_unknown(session)
    _check(session, state, by, reason, knows_state)
    _check_version(session, state, version)
    record, said = session.record, "" if version is None else f", with weights {version}"
    if knows_state and version is not None:
        record = asserted_version(record, state, session.capabilities, version)
        session.go("contradicted", reason=f"{COMMAND}() was asked for")
    else:
        record = asserted(record, state, session.capabilities, session.policy.pause_mode, version)
    transition = session.commit(record, Edge(f"asserted_{state}", reason=f"asserted by {by}{said}: {reason}"))
    assert transition is not None
    return transition


def _check(session: Session, state: State, by: str, reason: str, knows_state: bool) -> None:
    """Raises where this may not be asserted: EngineBusy, InvalidTransition, or ValueError without a name or reason."""
    holder = session.holder()
    if holder is not None:
        raise EngineBusy(holder, **session.about(COMMAND))
    if state not in RING or not (knows_state or session.state is State.FAILED):
        raise session.not_allowed(COMMAND)
    if session.record.uncertain.needs_barrier:
        raise session.not_allowed(COMMAND, "; what was sent before may still run")
    if not by.strip() or not reason.strip():
        raise ValueError("an override needs the name of who makes it (by=) and a reason (reason=)")


def _weights_unknown(session: Session) -> bool:
    contents = session.facts.contents
    return all(contents.get(tag) is None for tag in session.capabilities.stage("weights"))


def _check_version(session: Session, state: State, version: str | None) -> None:
    """Raises ConfigurationError where no weights can be of this version in this state."""
    if version is None:
        return
    if not isinstance(version, str) or not version.strip():
        raise ConfigurationError(f"version={version!r}: a version is the label of weights, such as 'step-12'")
    capabilities = session.capabilities
    weights = capabilities.stage("weights")
    lost = sorted(tag for tag in weights if capabilities.spec(tag).on_release == "discarded")
    if not weights:
        raise ConfigurationError(f"{session.name} has no tag of weights, so leave version={version!r} out")
    if state is State.RELEASED and lost:
        raise ConfigurationError(
            f"{session.name} discards {', '.join(lost)} when it is released, so that it holds no version then: leave "
            f"version={version!r} out, and name the source of its weights in onload(weights=...)"
        )
