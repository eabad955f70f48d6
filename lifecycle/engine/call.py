"""The one gate through which calls reach an engine: whatever becomes of a call, no more is known than was seen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ..core.calls import Call, Reply
from ..core.deadline import Deadline
from ..core.errors import DeadlineExceeded, OperationFailed, Rejected, Unreachable
from ..core.states import State
from ..rules.evidence import Context
from ..rules.knowledge import after_cancelled, after_reply, intent_over
from .group_commit import Sending, is_written_down, write_down
from .session import Session


async def send(
    session: Session,
    call: Call,
    *,
    deadline_s: float,
    command: Context | None = None,
    intent: Context | None = None,
    on_sent: Callable[[], object] | None = None,
) -> Reply:
    """The reply to this call, of which the record and the observers know.

    When the caller gives up, its effect is unknown and a barrier is needed; where a call cannot be cancelled it has
    ended first, and its reply counts. `command` lets bytes decide later what a lost call did; `intent` (default: the
    same) lets them decide it for another process, where this one ends before the reply. A call that must be written
    down before it is sent, and cannot be, is not sent; nor is one that is given up before it was. `on_sent` is called
    when it is sent.
    """
    begun = time.monotonic()
    if is_written_down(session):
        now_s = time.time()
        unwritten = await write_down(Sending(session, call, intent or command, now_s, now_s + deadline_s))
        if unwritten is not None:
            session.journal.call_ended(call, unwritten)
            return unwritten
    if on_sent is not None:
        on_sent()
    reply: Reply | None = None
    given_up: asyncio.CancelledError | None = None
    try:
        sending = session.adapter.send(call, deadline_s=deadline_s)
        if session.capabilities.cancellable:
            reply = await sending
        else:
            reply, given_up = await joined(asyncio.ensure_future(sending))
    finally:
        took_s = time.monotonic() - begun
        session.journal.call_ended(call, reply, took_s)
        session.observed = session.observed.after_call(call, reply)
        if reply is None:
            session.commit(intent_over(after_cancelled(session.record, call, command)))
        else:
            session.notify("call", session.name, call, reply, took_s)
            session.commit(intent_over(after_reply(session.record, call, reply, command)))
    if given_up is not None:
        raise given_up
    assert reply is not None
    return reply


async def joined(effect: asyncio.Future[Reply]) -> tuple[Reply, asyncio.CancelledError | None]:
    """The effect's reply, once it has ended; and the cancellation by which the caller gave up meanwhile, if it did.

    Raises that cancellation where the effect gave no reply.
    """
    given_up: asyncio.CancelledError | None = None
    while not effect.done():
        try:
            await asyncio.shield(effect)
        except asyncio.CancelledError as error:
            given_up = error
        except Exception:
            break
    if given_up is not None and (effect.cancelled() or effect.exception() is not None):
        raise given_up
    return effect.result(), given_up


def failure(
    reply: Reply, call: Call, *, engine: str, command: str, state: State, deadline: Deadline
) -> OperationFailed:
    """The error that a reply stands for which is no acknowledgement."""
    if reply.outcome == "rejected":
        why = f"{call} was answered with {reply.status or 'an error'}: {reply.detail or 'no reason given'}"
        return Rejected(why, status=reply.status, detail=reply.detail, engine=engine, command=command, state=state)
    if reply.late:
        why = f"{call} was not answered in time; whether it took effect is not known"
        return DeadlineExceeded(why, deadline_s=deadline.total_s, engine=engine, command=command, state=state)
    return Unreachable(f"{call} got no answer: {reply.detail}", engine=engine, command=command, state=state)
