"""The journal of one engine: what its driver writes into it.

Commands and edges are written as observers hear of them. Calls are written by `engine.call`, the gate through which
they are sent; what a move does, by `fleet.move`. That a driver attached, and what it observed then, is held back until
it does something: one that only looks, as `lifecycle status` does, writes nothing.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Protocol

from ..core.calls import Call, Reply
from ..core.commands import Command
from ..core.errors import CommandRefused
from ..core.journal import (
    Attached,
    BarrierReturned,
    CallEnded,
    CallSent,
    CommandBegan,
    CommandEnded,
    Entry,
    Event,
    Refused,
    StateEntered,
)
from ..core.observer import BaseObserver
from ..core.policy import ACCEPT, Policy
from ..core.readings import Reading
from ..core.record import Record
from ..core.states import State
from ..core.transition import Transition
from ..rules.evidence import Context
from ..store.journal import Journal
from .owner import Owner

#: The most characters of a call, a reason or an answer that are kept.
_MOST = 2000


#: What a row says too that is saved soon: that a command began, before anything is sent; that a call was answered,
#: which the row has in doubt until then; and each edge.
_WITH_ROW = (CommandBegan, CallEnded, StateEntered)


class Journaled(Protocol):
    """An engine as its journal sees it."""

    @property
    def record(self) -> Record:
        """All that is known of it."""

    def journal_file(self) -> Journal | None:
        """The journal beside what is known of it; None where nothing keeps one."""


class EngineJournal(BaseObserver):
    """Writes what one driver does to one engine; nothing where no file is kept, which is asked each time."""

    __slots__ = ("_held", "_key", "_name", "_of", "_owner")

    def __init__(self, owner: Owner, *, name: str, key: str, of: Journaled) -> None:
        self._owner = owner
        self._name = name
        self._key = key
        self._of = of
        self._held: list[Entry] | None = None

    @property
    def driver(self) -> str:
        """The token of the driver that writes."""
        return self._owner.driver.token

    @property
    def file(self) -> Journal | None:
        """Where it is written; None where nothing is."""
        return self._of.journal_file()

    def note(self, event: Event) -> None:
        """An entry of this event is written at the next turn of the event loop, or with the next row."""
        file = self.file
        if file is None:
            return
        entry = Entry(event, time.time(), self.driver, self._name, self._key)
        if isinstance(event, Attached):
            self._held = [*(self._held or ()), entry]
        elif self._held is not None and self._only_looks(event):
            self._held.append(entry)
        else:
            held, self._held = self._held or [], None
            succeeded = isinstance(event, CommandEnded) and not event.error  # written with its edge
            file.note([*held, entry], with_row=succeeded or isinstance(event, _WITH_ROW))

    def _only_looks(self, event: Event) -> bool:
        """Whether this is what a driver that attaches does: it waits for a barrier, and enters the first state."""
        first = not any(isinstance(entry.event, StateEntered) for entry in self._held or ())
        return isinstance(event, BarrierReturned) or (first and isinstance(event, StateEntered))

    def flush(self) -> None:
        """What was noted is written now."""
        file = self.file
        if file is not None:
            file.flush()

    def attached(self, url: str, group: str, policy: Policy) -> None:
        """The driver observed the engine."""
        if self.file is None:
            return
        self.note(
            Attached(
                who=self._owner.driver.who,
                url=url,
                group=group,
                boot=self._of.record.facts.boot,
                version=_version(),
                threshold_bytes=policy.threshold_bytes,
                accept={claim: policy.least_grade(claim) for claim in ACCEPT},
            )
        )

    def call_sent(self, call: Call, command: Context | None, *, until_s: float, fence: int) -> None:
        """The call is about to be sent."""
        if self.file is None:  # the call is not put into words for nobody
            return
        baseline = None if command is None else command.baseline.residual
        self.note(
            CallSent(
                call=str(call)[:_MOST],
                command="" if command is None else command.command.name,
                effect=tuple(sorted(call.effect)),
                repeatable=call.repeatable,
                until_s=until_s,
                boot=self._of.record.facts.boot,
                baseline_bytes=baseline.resident_bytes if isinstance(baseline, Reading) else None,
                fence=fence,
            )
        )

    def call_ended(self, call: Call, reply: Reply | None, duration_s: float = 0.0) -> None:
        """What came of the call; None where the caller gave up before it was answered."""
        if self.file is None:
            return
        if reply is None:
            self.note(CallEnded(str(call)[:_MOST], "unknown", duration_s=duration_s))
            return
        outcome = "unsent" if reply.refused else reply.outcome
        self.note(CallEnded(str(call)[:_MOST], outcome, reply.status, reply.detail[:_MOST], duration_s))

    def committed(self, before: Record, record: Record, transition: Transition | None) -> None:
        """What is known of the engine is `record` from here on, and the edge that it went along, if any.

        A command that has succeeded ends with its edge.
        """
        if before.uncertain.needs_barrier and not record.uncertain.needs_barrier:
            self.note(BarrierReturned())
        if transition is None or self.file is None:
            return
        condition = record.conditions.get("memory_returned")
        self.note(
            StateEntered(
                trigger=transition.trigger,
                source=transition.source,
                dest=transition.dest,
                command=transition.command,
                reason=transition.reason[:_MOST],
                duration_s=transition.duration_s,
                verdicts=transition.verdicts,
                memory_returned=None if condition is None else condition.verdict,
                requests=transition.requests,
            )
        )
        if transition.trigger == "succeeded":
            self.note(CommandEnded(transition.command, transition.dest, transition.duration_s))

    # what observers hear

    def command_started(self, engine: str, command: Command, state: State) -> None:
        """The engine was claimed for a command."""
        self.note(CommandBegan(command.name, state))

    def refused(self, engine: str, command: Command, error: CommandRefused) -> None:
        """The command was refused."""
        self.note(Refused(command.name, type(error).__name__, error.why[:_MOST]))

    def command_ended(
        self, engine: str, command: Command, result: Transition | BaseException, duration_s: float
    ) -> None:
        """The command failed; that one succeeded is written with its last edge."""
        if isinstance(result, BaseException):
            error, reason = type(result).__name__, str(result)[:_MOST]
            self.note(CommandEnded(command.name, self._of.record.state, duration_s, error, reason))


@cache
def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # 30 ms, which whoever keeps no journal is spared

    try:
        return version("engine-lifecycle")
    except PackageNotFoundError:  # a folder on the path, without an installation
        return "unknown"
