"""Whether an engine is where it is to be, on evidence, and from where it can be brought there. Pure.

What brings an engine to a state goes one way: towards released, or back towards serving. It never goes through serving,
which would let requests in that nobody asked for, and never releases memory on the way to anything but released.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..core.capabilities import Capabilities
from ..core.errors import ConfigurationError
from ..core.policy import Policy
from ..core.record import Record
from ..core.sources import Pushed, Source, checked
from ..core.states import RING, State
from ..core.verdicts import Refuted
from .desired import set_desired
from .planner import Goal
from .weights import invalid_weights

#: The states that can be ensured, and from where each can be reached.
REACHED_FROM: Mapping[State, tuple[State, ...]] = {
    State.SERVING: RING,
    State.PAUSED: (State.SERVING, State.PAUSED),
    State.DRAINED: (State.SERVING, State.PAUSED, State.DRAINED),
    State.RELEASED: RING,
    State.WEIGHTS_RESTORED: (State.RELEASED, State.WEIGHTS_RESTORED),
    State.KV_RESTORED: (State.RELEASED, State.WEIGHTS_RESTORED, State.KV_RESTORED),
}


def ensurable(to: State | str) -> State:
    """The state; ConfigurationError where it is none that can be ensured."""
    if to not in REACHED_FROM:
        words = "is nothing that can be ensured, nobody brings an engine there" if to in list(State) else "is no state"
        raise ConfigurationError(f"{str(to)!r} {words}; one of {', '.join(REACHED_FROM)}")
    return State(to)


def weights_for(to: State, weights: Source | None) -> Source | None:
    """The weights that are named; ConfigurationError where they are no source, or an engine in that state takes none.

    An engine that is paused or drained keeps the weights that it has, and what it comes back with is named with its
    release.
    """
    if checked(weights) is not None and to in (State.PAUSED, State.DRAINED):
        raise ConfigurationError(
            f"ensure({str(to)!r}, weights=...): an engine that is {to} keeps the weights that it has; leave weights= "
            "out, and name them for 'released' or 'serving'"
        )
    return weights


def ends_at(to: State) -> State:
    """Whether the way there is one towards released or towards serving."""
    return State.RELEASED if to in (State.PAUSED, State.DRAINED, State.RELEASED) else State.SERVING


def not_there(
    record: Record, capabilities: Capabilities, policy: Policy, to: State, weights: Source | None = None
) -> str | None:
    """Why the engine is not in this state, as the state claims it, with these weights; None where it is."""
    if record.state is not to:
        return f"it is {record.state}"
    if to is State.RELEASED:
        return not_given_back(record, capabilities, policy, Goal(State.RELEASED))
    if to is State.SERVING and _kept_from_requests(record):
        return "it is serving, and its router is not known to send to it"
    if to in (State.SERVING, State.KV_RESTORED):
        wanted = record if weights is None else set_desired(record, weights, capabilities)
        return invalid_weights(wanted, capabilities)
    return None


def other_desired(record: Record, capabilities: Capabilities, to: State, weights: Source | None) -> str | None:
    """Why an engine that is in this state is not to serve, or to come back with, these weights; None where it is.

    One that holds the version that is named, and is to serve that, is left with the source that it has. One that is
    released loses what it holds, so the source itself counts.
    """
    desired = record.desired.source
    if weights is None or (desired == weights and not _pushed_by_another(desired, weights)):
        return None
    holds_it = invalid_weights(set_desired(record, weights, capabilities), capabilities) is None
    if to is not State.RELEASED and holds_it and invalid_weights(record, capabilities) is None:
        return None
    return f"it is to serve {desired or 'what it was launched with'}, and {weights} is named"


def _pushed_by_another(desired: Source | None, weights: Source) -> bool:
    """Whether these pushes, which count as equal, are made by different callbacks."""
    return isinstance(desired, Pushed) and isinstance(weights, Pushed) and desired.push != weights.push


def _kept_from_requests(record: Record) -> bool:
    """Whether the router in front of the engine, where there is one, was closed for it or could not be opened."""
    condition = record.conditions.get("routed")
    return record.facts.routed is False or (condition is not None and isinstance(condition.verdict, Refuted))


def not_given_back(record: Record, capabilities: Capabilities, policy: Policy, goal: Goal) -> str | None:
    """Why an engine that is released is not so as the goal wants it; None where it is.

    That it is released does not say that its memory came back: its release may have been acknowledged and refuted.
    """
    tags = frozenset(spec.name for spec in capabilities.tags) if goal.tags is None else goal.tags
    mapped = sorted(tags - record.facts.unmapped())
    condition = record.conditions.get("memory_returned")
    if mapped:
        return f"it is released, and {', '.join(mapped)} are not among what was given back"
    if condition is None or not policy.takes("memory_returned", condition.verdict):
        return f"it is released, and memory_returned is {condition.verdict if condition else 'not known'}"
    return None
