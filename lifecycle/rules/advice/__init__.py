"""What leads on from where an engine is: the one place from which every message takes its advice. Pure.

A message is about what was asked (a command, or a move to a goal) and what became of it. The advice names a call that
the table allows where the engine is now: the next command towards what was asked, or the move that makes it serve.
Where nothing here can decide, it says what a person has to do or to decide, and which call follows that.

- `towards_serving`: what a state leads to by itself.
- `advice`: a command was refused and nothing was sent, or calls were sent and the engine was found in another state.
- `after_recovery`: it was observed, and perhaps no state fits it.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ...core.advice import Advice, Choice
from ...core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from ...core.errors import EngineBusy, EngineHeld, GuardRefused, LifecycleError, NotProved, OperationFailed, Rejected
from ...core.frozen import replace
from ...core.sources import Pushed
from ...core.states import RING, UNCLAIMED, State
from ...core.verdicts import Unmeasurable
from ..desired import source_to_serve
from ..identity import is_contested
from ..planner import Goal, next_command
from ..table import row
from .guards import after_guard
from .serving import AGAIN, ANEW, SERVES, home, not_connected, onload_from, paused, recover, towards_serving
from .typed import NAME, TRAINER, WHY, Asked, Where, asking

__all__ = ["TRAINER", "Asked", "Where", "advice", "after_recovery", "not_connected", "towards_serving"]


def advice(where: Where, asked: Asked | None, error: LifecycleError) -> Advice:
    """What a message names that is about this engine: `where` it is now, and what was `asked` of it."""
    if isinstance(error, EngineBusy):
        wait = f"wait until {error.busy_with} has ended, or cancel it"
        held = isinstance(error, EngineHeld)
        if isinstance(error, EngineHeld):
            wait = f"wait until {error.until}"
        waiting = Choice(first=wait) if asked is None else asking(where, asked, wait)
        gives_up = not held and isinstance(asked, Resume) and error.busy_with == Drain.name
        return Advice((Choice("engine.resume(preempt=True)"), waiting) if gives_up else (waiting,))
    if where.state in UNCLAIMED or not where.state.stable:
        return towards_serving(where)
    match error:
        case OperationFailed():
            choices = _after_failure(where, asked, error)
        case GuardRefused(reasons=reasons):
            choices = [each for name in reasons for each in after_guard(where, asked, name)]
        case _:
            choices = _instead(where, asked)
    return Advice(tuple(dict.fromkeys(choices))) if choices else towards_serving(where)


def _after_failure(where: Where, asked: Asked | None, error: OperationFailed) -> list[Choice]:
    """It settled in a state of the ring: what makes it serve, and what where that fails again."""
    if isinstance(asked, UpdateWeights) and where.invalid:
        pushed = isinstance(asked.source, Pushed)  # nothing but the trainer makes that again
        if pushed or isinstance(error, Rejected | NotProved):
            return onload_from(where)
    if where.state is State.SERVING and isinstance(asked, Command):
        return [asking(where, asked), SERVES]
    unseen = [name for name, each in getattr(error, "verdicts", {}).items() if isinstance(each, Unmeasurable)]
    if unseen:
        accepting = f"accept {', '.join(unseen)} unseen (Policy.accept, LIFECYCLE_ACCEPT)"
        return [replace(each, first=each.first or accepting) for each in home(where)]
    again = isinstance(asked, RestoreWeights | UpdateWeights | RestoreKV | Resume)
    return [*home(where), recover(where, AGAIN)] if again else home(where)


def _instead(where: Where, asked: Asked | None) -> list[Choice]:
    """The command has no row here: the next one on the way to where it leads."""
    if isinstance(asked, UpdateWeights) and where.state is State.SERVING:
        return paused(where)
    if asked is None or where.state is State.KV_RESTORED:
        return home(where)
    command = next_command(where.view, _goal(where, asked))
    if command is None or row(command.name, where.state) is None or isinstance(command, Resume):
        return home(where)
    return [asking(where, command)]


def _goal(where: Where, asked: Asked) -> Goal:
    """Where a command leads: the ones that go away from serving to released, the others to serving."""
    match asked:
        case Goal():
            return asked
        case Release(tags=tags, weights=weights):
            return Goal(State.RELEASED, tags, weights)
        case Pause() | Drain():
            return Goal(State.RELEASED)
        case UpdateWeights(source=source):
            return Goal(State.SERVING, weights=source)
    return Goal(State.SERVING, weights=source_to_serve(where.record, where.capabilities))


def after_recovery(where: Where, candidates: Sequence[State] = ()) -> Advice:
    """What leads on once the engine was observed. Failed, a person may know in which of the `candidates` it is."""
    if where.state is not State.FAILED:
        return towards_serving(where)
    if is_contested(where.record):
        return Advice((recover(where, "give each engine an address of its own"), recover(where, ANEW)))
    choices = [_overriding(where, state) for state in candidates if state in RING]
    return Advice((*choices, recover(where, "change what the reason names"), recover(where, ANEW)))


def _overriding(where: Where, state: State) -> Choice:
    call = f"engine.override_state(State.{state.name}, by={NAME}, reason={WHY})"
    line = f"lifecycle override {state} {shlex.quote(where.address)} --by {NAME} --reason {WHY}"
    return Choice(call, line, f"if you know that it is {state}")
