"""Group commit: what has to be written down before a call is sent, once for all engines that are ready at one moment.

Of each call: its lease says that something is sent, and until when it may run; the journal has it; and where it changes
memory or cannot be repeated, the record has its intent. The engines of one phase are ready in the same turn of the
event loop, or one later: the last of those that wait for each other goes on at once. So a call waits for the turn after
its own, and then all that are ready are written: the leases in one transaction, the records with their entries in one
more, which is synced. No call is sent before its own intent was committed.

An intent is of one call of one engine: a second one of the same engine begins the next group. Where a group cannot be
written, each of it is tried by itself, so that only the engine for which it fails is refused. What was given up before
its call was sent has no intent left: before the group was written, it is not in it; after that, it is taken back.

A store, or a holder of leases, that has no transaction for several engines is written at once, and nothing waits. A
call that needs neither intent nor lease does not wait either, unless a group does: its entry is written with that one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from ..core.calls import Call, Reply
from ..core.errors import ConfigurationError
from ..core.lease import LeaseHeld
from ..core.record import Record
from ..nodes import clock
from ..rules.evidence import Context
from ..rules.knowledge import intended, intent_over, needs_intent
from ..store.sqlite import Store
from .owner import send_under_leases
from .session import NotSaved, Session, commit_together


@dataclass(frozen=True, slots=True, eq=False)
class Sending:
    """A call that is about to be sent, and may run until `until_s` (wall-clock seconds).

    With `command` bytes can decide later what it did.
    """

    session: Session
    call: Call
    command: Context | None
    since_s: float
    until_s: float

    @property
    def call_until_s(self) -> float | None:
        """Until when it may run, of a call that cannot be repeated."""
        return None if self.call.repeatable else self.until_s

    @property
    def waits_for_others(self) -> bool:
        """Whether what is written down of it can be written with that of other engines."""
        session = self.session
        if session.owner.writes_with_others(self.call_until_s):
            return True
        return needs_intent(self.call) and any(isinstance(each, Store) for each in session.stores(self.known, "must"))

    @property
    def known(self) -> Record:
        """What is known of the engine now."""
        return self.session.record

    def with_intent(self) -> Record:
        """What is known now, and that this call is about to be sent."""
        by, times = self.session.owner.driver, {"since_s": self.since_s, "until_s": self.until_s}
        return intended(self.known, self.call, self.command, **times, by=by, clock=clock.stamp())


#: Why a call must not be sent, by the call, or what was raised; those that may be sent are not in it.
Unsent = dict[Sending, Reply | Exception]


@dataclass(slots=True)
class _Group:
    """The calls that became ready in two turns of an event loop, each with whom it keeps waiting."""

    waiting: list[tuple[Sending, asyncio.Future[Reply | None]]] = field(default_factory=list)
    written: bool = False

    def intends(self, session: Session) -> bool:
        """Whether an intent of this engine is in it."""
        return any(each.session is session and needs_intent(each.call) for each, _ in self.waiting)

    def write(self) -> None:
        """Everything in it was written down, and whoever waits goes on."""
        if self.written:
            return
        self.written = True
        files = {file for each, _ in self.waiting if (file := each.session.journal.file) is not None}
        these = [(sending, future) for sending, future in self.waiting if not future.done()]  # given up meanwhile
        try:
            unsent = written([sending for sending, _ in these])
        except BaseException as error:
            for _, future in these:
                future.set_exception(error)
            return
        finally:
            for file in files:
                file.flush()
        for sending, future in these:
            _end(future, unsent.get(sending))


_groups: WeakKeyDictionary[asyncio.AbstractEventLoop, _Group] = WeakKeyDictionary()


def is_written_down(session: Session) -> bool:
    """Whether anything of what is sent to this engine is: by a holder of leases, in a store or in a journal."""
    return session.owner.holder is not None or session.keeps_records or session.journal_file() is not None


async def write_down(sending: Sending) -> Reply | None:
    """None once all that must be on disk before this call is sent is there; otherwise the reply of one not sent.

    A cancellation leaves no intent: the call is not sent.
    """
    loop = asyncio.get_running_loop()
    group = _groups.get(loop)
    if group is not None and needs_intent(sending.call) and group.intends(sending.session):
        group.write()
    pending, file = group is not None and not group.written, sending.session.journal.file
    if not pending and not sending.waits_for_others:
        outcome = written([sending]).get(sending)
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is None and file is not None:
            await _its_entry_is_written(sending)
        return outcome
    if group is None or group.written:
        group = _groups[loop] = _Group()
        loop.call_soon(loop.call_soon, group.write)
    if file is not None:
        file.row_comes()
    future: asyncio.Future[Reply | None] = loop.create_future()
    group.waiting.append((sending, future))
    try:
        return await future
    except asyncio.CancelledError:
        if not future.cancelled() and future.exception() is None:
            _taken_back(sending)
        raise


async def _its_entry_is_written(sending: Sending) -> None:
    """The turn of the event loop has passed in which its entry was noted, and those of other engines with it."""
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        _taken_back(sending)
        raise


def _end(future: asyncio.Future[Reply | None], outcome: Reply | Exception | None) -> None:
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _taken_back(sending: Sending) -> None:
    """It was written down that the call is sent, and it is not."""
    session = sending.session
    session.journal.call_ended(sending.call, Reply("lost", detail="it was given up before it was sent", refused=True))
    if session.record.uncertain.intent is not None:
        session.commit(intent_over(session.record), save="try")


def written(sendings: Sequence[Sending]) -> Unsent:
    """Leases, journal and store say of these calls that they are sent; returns why some of them must not be."""
    unsent: Unsent = {}
    asked = [(each.session.owner, each.session.facts.boot, each.call_until_s) for each in sendings]
    for each, problem in zip(sendings, send_under_leases(asked), strict=True):
        if isinstance(problem, LeaseHeld):
            why = f"it was not sent: the lease of the engine was lost; {problem}"
            unsent[each] = Reply("lost", detail=why, refused=True)
        elif problem is not None and not isinstance(problem, ConfigurationError):
            unsent[each] = problem
        elif problem is not None and not each.session.goes_on_unrecorded(problem):
            unsent[each] = _not_sent(problem)
    ready = [each for each in sendings if each not in unsent]
    for each in ready:
        session = each.session
        session.journal.call_sent(each.call, each.command, until_s=each.until_s, fence=session.owner.fence)
    intents = [each for each in ready if needs_intent(each.call)]
    try:
        commit_together([(each.session, each.with_intent()) for each in intents], "must")
    except NotSaved as problem:
        if len(intents) == 1:
            unsent[intents[0]] = _not_sent(problem)
            return unsent
        for each in intents:
            try:
                each.session.commit(each.with_intent(), save="must")
            except NotSaved as own:
                unsent[each] = _not_sent(own)
    return unsent


def _not_sent(problem: Exception) -> Reply:
    return Reply("lost", detail=f"it was not sent, since that could not be written down ({problem})", refused=True)
