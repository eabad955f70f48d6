"""The one gate through which calls reach an engine: whatever becomes of a call, no more is known than was seen."""

from __future__ import annotations

import asyncio
import time

from ..core.calls import Call, Reply
from ..core.deadline import Deadline
from ..core.errors import ConfigurationError, DeadlineExceeded, OperationFailed, Rejected, Unreachable
from ..core.lease import LeaseHeld
from ..core.states import State
from ..nodes import clock
from ..rules.evidence import Context
from ..rules.knowledge import after_cancelled, after_reply, intended, intent_over, needs_intent
from .session import NotSaved, Session


async def send(
    session: Session,
    call: Call,
    *,
    deadline_s: float,
    command: Context | None = None,
    intent: Context | None = None,
) -> Reply:
    """The reply to this call, of which the record and the observers know.

    When the caller gives up, its effect is unknown and a barrier is needed; where a call cannot be cancelled it has
    ended first, and its reply counts. `command` lets bytes decide later what a lost call did; `intent` (default: the
    same) lets them decide it for another process, where this one ends before the reply. A call that must be written
    down before it is sent, and cannot be, is not sent.
    """
    begun = time.monotonic()
    unwritten = _write_down(session, call, deadline_s, intent or command)
    if unwritten is not None:
        session.journal.call_ended(call, unwritten)
        return unwritten
    sending = asyncio.ensure_future(session.adapter.send(call, deadline_s=deadline_s))
    try:
        await (sending if session.capabilities.cancellable else joined(sending))
    finally:
        reply, took_s = _reply(sending), time.monotonic() - begun
        session.journal.call_ended(call, reply, took_s)
        session.observed = session.observed.after_call(call, reply)
        if reply is None:
            session.commit(intent_over(after_cancelled(session.record, call, command)))
        else:
            session.notify("call", session.name, call, reply, took_s)
            session.commit(intent_over(after_reply(session.record, call, reply, command)))
    return sending.result()


def _write_down(session: Session, call: Call, deadline_s: float, command: Context | None) -> Reply | None:
    """The lease says that a call is sent, and the store which; otherwise the reply to a call that was not sent."""
    now_s = time.time()
    until_s = now_s + deadline_s
    try:
        session.owner.sends(session.facts.boot, None if call.repeatable else until_s)
    except LeaseHeld as held:
        return Reply("lost", detail=f"it was not sent: the lease of the engine was lost; {held}", refused=True)
    except ConfigurationError as problem:
        if not session.goes_on_unrecorded(problem):
            return _not_sent(problem)
    session.journal.call_sent(call, command, until_s=until_s, fence=session.owner.fence)
    try:
        if needs_intent(call):
            by = session.owner.driver
            times = {"since_s": now_s, "until_s": until_s}
            record = intended(session.record, call, command, **times, by=by, clock=clock.stamp())
            session.commit(record, save="must")
    except NotSaved as problem:
        return _not_sent(problem)
    return None


def _not_sent(problem: Exception) -> Reply:
    return Reply("lost", detail=f"it was not sent, since that could not be written down ({problem})", refused=True)


def _reply(sending: asyncio.Future[Reply]) -> Reply | None:
    """What was answered; None where the caller gave up before."""
    if not sending.done() or sending.cancelled() or sending.exception() is not None:
        return None
    return sending.result()


async def joined(effect: asyncio.Future[Reply]) -> Reply:
    """The effect's reply; a cancellation waits until the effect has ended, and then goes on."""
    cancelled: asyncio.CancelledError | None = None
    while not effect.done():
        try:
            await asyncio.shield(effect)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:
            break
    if cancelled is not None:
        raise cancelled
    return effect.result()


def failure(
    reply: Reply, call: Call, *, engine: str, command: str, state: State, deadline: Deadline
) -> OperationFailed | None:
    """The error that a reply stands for; None where the call was acknowledged."""
    if reply.outcome == "done":
        return None
    if reply.outcome == "rejected":
        why = f"{call} was answered with {reply.status or 'an error'}: {reply.detail or 'no reason given'}"
        return Rejected(why, status=reply.status, detail=reply.detail, engine=engine, command=command, state=state)
    if reply.late:
        why = f"{call} was not answered in time; whether it took effect is not known"
        return DeadlineExceeded(why, deadline_s=deadline.total_s, engine=engine, command=command, state=state)
    return Unreachable(f"{call} got no answer: {reply.detail}", engine=engine, command=command, state=state)
