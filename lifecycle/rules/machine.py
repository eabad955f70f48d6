"""The table compiled for `transitions`: one synchronous machine asked as a pure function.

Source: transitions 0.9.3: an Event's trigger needs only the model's `state`; registering a model costs 13 KiB and
drags every other model into a pickle; AsyncMachine swallows cancellation. States go in as strings: an event asks the
name of an enumeration's member six times, which is a tenth of its time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import transitions

from ..core.states import RING, STABLE, UNCLAIMED, State
from .evidence import Context
from .table import OPERATIONS, Operation

logging.getLogger("transitions").setLevel(logging.WARNING)  # observers hear of every edge instead


#: The states as `transitions` knows them, both ways.
_NAMES = {state: state.value for state in State}
_STATES = {state.value: state for state in State}


class _Token:
    """What `transitions` moves in place of an engine: it sets the `state` of whatever model it is given."""

    __slots__ = ("state",)

    def __init__(self, state: State) -> None:
        self.state = _NAMES[state]


class _Silent(transitions.State):
    """A state without callbacks: nothing is done, or logged, where it is entered or left."""

    def enter(self, event_data: transitions.EventData) -> None:
        """Nothing hears of it."""

    def exit(self, event_data: transitions.EventData) -> None:
        """Nothing hears of it."""


class _Machine(transitions.Machine):
    """The machine, whose states call nobody."""

    state_cls = _Silent


class Refusals(Exception):
    """The guards of a row said no; `reasons` maps the name of each that did to its words."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self.reasons = dict(reasons)
        super().__init__("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))


class NoSuchEdge(Exception):
    """The table has no row for this trigger in this state."""


def refusals(guards: tuple[Any, ...], context: Context) -> dict[str, str]:
    """The reasons of those guards that refuse, by name."""
    return {guard.name: reason for guard in guards if (reason := guard.check(context)) is not None}


def _asks(row: Operation) -> Callable[[Context], bool]:
    def all_guards_pass(context: Context) -> bool:
        reasons = refusals(row.guards, context)
        if reasons:
            raise Refusals(reasons)
        return True

    return all_guards_pass


def _compile() -> _Machine:
    machine = _Machine(model=None, states=[state.value for state in State], initial=None, auto_transitions=False)
    for row in OPERATIONS:
        machine.add_transition(row.command, row.source.value, row.via.value, conditions=[_asks(row)])
    for via, dest in {row.via: row.dest for row in OPERATIONS}.items():
        machine.add_transition("succeeded", via.value, dest.value)
        machine.add_transition("failed", via.value, State.FAILED.value)
    for state in sorted(STABLE - UNCLAIMED):
        machine.add_transition("contradicted", state.value, State.FAILED.value)
    for state in (*RING, State.GONE, State.FAILED):
        machine.add_transition(f"observed_{state}", [each.value for each in sorted(UNCLAIMED)], state.value)
    for state in RING:
        machine.add_transition(f"asserted_{state}", State.FAILED.value, state.value)
    return machine


_MACHINE = _compile()


def next_state(state: State, trigger: str, context: Context | None = None) -> State:
    """The state to which this trigger leads from `state`. Pure: nothing is moved.

    Raises NoSuchEdge, or Refusals with the guards' reasons.
    """
    token, event = _Token(state), _MACHINE.events.get(trigger)
    if event is None:
        raise NoSuchEdge(f"there is no trigger {trigger!r}")
    try:
        event.trigger(token, context)
    except transitions.MachineError as error:
        raise NoSuchEdge(f"{trigger} leads nowhere from {state}") from error
    return _STATES[token.state]


def edges() -> list[tuple[str, State, State]]:
    """Every edge of the machine: (trigger, source, destination)."""
    return [
        (name, State(transition.source), State(str(transition.dest)))
        for name, event in _MACHINE.events.items()
        for each in event.transitions.values()
        for transition in each
    ]
