"""What to do next to find out where an engine is. Pure: `engine.reconcile` does what this decides, and asks again.

First no effect may be running any more, and one process must answer at the address. Then bytes may tell what the engine
does not. Then an engine that admits requests without being worth serving is closed, where that may be done. And last it
enters the first state that its facts make, or none where several fit.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.capabilities import Capabilities
from ..core.record import Record
from ..core.states import State
from .identity import IDENTITY, is_contested
from .table import fits
from .weights import invalid_weights


@dataclass(frozen=True, slots=True)
class ReadBytes:
    """Read what is resident: it may decide which tags are mapped."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close admission: the engine is open, or may be, and is not worth serving."""


@dataclass(frozen=True, slots=True)
class Enter:
    """Enter this state: the facts make it."""

    state: State


@dataclass(frozen=True, slots=True)
class Stay:
    """Stay where it is: no state fits, for this reason."""

    reason: str


Decision = ReadBytes | Close | Enter | Stay


def decide(
    record: Record, capabilities: Capabilities, *, tried: frozenset[type], may_close: bool, must_close: bool = False
) -> Decision:
    """The next step towards the state that the facts make. `tried` are the kinds of step that were taken already.

    `may_close`: the engine may be acted on. `must_close`: it is closed even where it is worth serving, and no state is
    entered unless it is.
    """
    if record.uncertain.needs_barrier:
        return Stay("what was sent before may still run")
    if is_contested(record):
        return Stay(record.conditions[IDENTITY].verdict.reason)
    facts = record.facts
    if None in facts.mapped.values() and ReadBytes not in tried:
        return ReadBytes()
    valid = invalid_weights(record, capabilities) is None
    worth_serving = facts.admission is not None and valid and all(each is True for each in facts.mapped.values())
    if may_close and Close not in tried and facts.admission != "closed" and (must_close or not worth_serving):
        return Close()
    if must_close and facts.admission != "closed":
        return Stay("it was to be closed, and is not known to be")
    state = fits(facts, capabilities, weights_are_valid=valid)
    return Stay(f"no state fits: {facts}") if state is None else Enter(state)
