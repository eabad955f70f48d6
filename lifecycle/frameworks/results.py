"""What the engines answered to the calls of a verb, as frameworks return it: one result an engine, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ..core.calls import Call, Reply
from ..core.commands import Command
from ..core.facts import Fact
from ..core.observer import BaseObserver
from ..core.states import State
from ..core.transition import Transition
from ..engine.engine import Engine


class Answers(BaseObserver):
    """Hears what each engine answered, command by command."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, str], list[tuple[Call, Reply]]] = {}
        self._running: dict[str, str] = {}
        self._done: set[tuple[str, str]] = set()

    def command_started(self, engine: str, command: Command, state: State) -> None:
        """What it answers from here on is about this command."""
        self._running[engine] = command.name
        self._calls[engine, command.name] = []

    def call(self, engine: str, call: Call, reply: Reply, duration_s: float) -> None:
        """One call was answered."""
        command = self._running.get(engine)
        if command is not None:
            self._calls[engine, command].append((call, reply))

    def command_ended(
        self, engine: str, command: Command, result: Transition | BaseException, duration_s: float
    ) -> None:
        """The command ended, well or not."""
        self._running.pop(engine, None)
        if isinstance(result, Transition):
            self._done.add((engine, command.name))

    def of(self, command: str, engines: Iterable[Engine]) -> list[Any]:
        """The result of each engine that carried this command out, in the order given."""
        return [_value(self._calls[engine.name, command]) for engine in engines if (engine.name, command) in self._done]


def _value(calls: Sequence[tuple[Call, Reply]]) -> Any:
    """What an engine answered to the calls that moved memory: to one, that answer; to several, a list; to none, None.

    Where Transition.replies has them, this is the place that reads them from there.
    """
    values = [reply.value for call, reply in calls if Fact.MAPPED in call.effect]
    return values[0] if len(values) == 1 else values or None


@contextmanager
def answers_of(engines: Sequence[Engine]) -> Iterator[Answers]:
    """Inside, what these engines answer is heard."""
    heard = Answers()
    with ExitStack() as stack:
        for observers in {id(engine.observers): engine.observers for engine in engines}.values():
            stack.enter_context(observers.joined_by(heard))
        yield heard
