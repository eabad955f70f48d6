"""The table compiled for `transitions`: one synchronous machine for all engines, which are not registered with it.

Source: transitions 0.9.3: an Event's trigger needs only the model's `state`; registering a model costs 13 KiB and
drags every other model into a pickle; AsyncMachine swallows cancellation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from transitions import Machine, MachineError

from ..core.states import RING, STABLE, UNCLAIMED, State
from .evidence import Context
from .table import OPERATIONS, Operation

logging.getLogger("transitions").setLevel(logging.WARNING)  # every edge is told by events.Observer instead


class Stateful(Protocol):
    """Anything that the machine can move."""

    state: State


class Refusals(Exception):
    """The guards of a row said no; `reasons` maps the name of each that did to its words."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self.reasons = dict(reasons)
        super().__init__("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))


class NoSuchEdge(Exception):
    """The table has no row for this trigger in this state."""


def refusals(guards: tuple[Any, ...], context: Context) -> dict[str, str]:
    """The reasons of those guards that refuse, by name."""
    answers = {guard.name: guard(context) for guard in guards}
    return {name: reason for name, reason in answers.items() if reason is not None}


def _asks(row: Operation) -> Callable[[Context], bool]:
    def all_guards_pass(context: Context) -> bool:
        reasons = refusals(row.guards, context)
        if reasons:
            raise Refusals(reasons)
        return True

    return all_guards_pass


def _compile() -> Machine:
    machine = Machine(model=None, states=State, initial=None, auto_transitions=False)
    for row in OPERATIONS:
        machine.add_transition(row.command, row.source, row.via, conditions=[_asks(row)])
    for via, dest in {row.via: row.dest for row in OPERATIONS}.items():
        machine.add_transition("succeeded", via, dest)
        machine.add_transition("failed", via, State.FAILED)
    for state in sorted(STABLE - UNCLAIMED):
        machine.add_transition("contradicted", state, State.FAILED)
    for state in (*RING, State.GONE, State.FAILED):
        machine.add_transition(f"observed_{state}", [State.DETACHED, State.FAILED, State.GONE], state)
    for state in RING:
        machine.add_transition(f"declared_{state}", State.FAILED, state)
    return machine


_MACHINE = _compile()


def fire(engine: Stateful, trigger: str, context: Context | None = None) -> State:
    """Moves the engine along one edge and returns its new state; where there is none, or a guard refuses, nothing.

    Raises NoSuchEdge, or Refusals with the guards' reasons; the state is then what it was.
    """
    arguments = () if context is None else (context,)
    try:
        _MACHINE.events[trigger].trigger(engine, *arguments)
    except (MachineError, KeyError) as error:
        raise NoSuchEdge(f"{trigger} leads nowhere from {engine.state}") from error
    return engine.state


def edges() -> list[tuple[str, State, State]]:
    """Every edge of the machine: (trigger, source, destination)."""
    return [
        (name, State[transition.source], State[str(transition.dest)])
        for name, event in _MACHINE.events.items()
        for transitions in event.transitions.values()
        for transition in transitions
    ]
