"""Verifying: whether an engine is still what it is believed to be, observed now.

Whoever else has the engine's address may have acted since it was observed last, or its process may be another one. So
nothing that others rely on is older than that: an offload verifies the engines that are released already before it says
that their memory is free, and an onload those that serve before it leaves them alone.

One that was gone is so still where nothing but that is seen: silence may be a process that was started again.

Boot, admission, requests and tags are observed. Of a released engine what is resident is read too: `memory_returned`
is judged by that, and where as much has come back as a tag holds, somebody restored it. What is denied is reconciled.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext

from ..core.deadline import Deadline
from ..core.observation import Observation
from ..core.readings import Reading
from ..core.states import UNCLAIMED, State
from ..core.verdicts import Unmeasurable
from ..rules import knowledge
from ..rules.contradiction import contradiction
from .gather import EVERYTHING, observe, residual
from .reconcile import NOT_GONE, Found, reconcile
from .session import Session

#: Seconds that it may take unless the caller says.
VERIFY_S = 10.0

#: How long a reading that failed is asked for again.
AGAIN_S = 1.0


async def verify(session: Session, deadline: Deadline, *, for_move: bool = False, held: bool = False) -> Found:
    """Where the engine is, observed just now: a claim that what was seen denies was given up.

    `for_move`: asked by the move that has the engine; `held`: by the command that has it. While somebody else has it,
    it is not interfered with.
    """
    known = session.record
    seen = await observe(session, EVERYTHING, deadline_s=deadline.look_s(0.5))
    lives = session.state is State.GONE and seen.alive is not False
    reading = denied = None
    if session.state not in UNCLAIMED:
        denied = contradiction(known, seen)
        reading = None if denied else await _reading(session, deadline)
    free = held or session.holder(for_move=for_move) is None
    if not free or session.record is not known:
        return Found(session.state)
    if reading is not None:
        denied = _read_at_rest(session, seen, reading)
    if denied is None and not lives:
        session.confirmed_at_s = time.monotonic()
        return Found(session.state)
    leased = session.owner.lease is not None
    with nullcontext() if held else session.claimed("verify", for_move=for_move):
        session.commit(knowledge.denied(session.record, seen, session.capabilities))
        trigger = "contradicted" if denied else f"observed_{State.FAILED}"
        session.go(trigger, reason=denied or NOT_GONE)
        try:
            return await reconcile(session, deadline)
        finally:
            if not leased:
                session.rest(keep=session.owner.sent and session.state is not State.SERVING)


def _read_at_rest(session: Session, seen: Observation, reading: Reading | Unmeasurable) -> str | None:
    """What is resident was taken in; how it denies what is believed, if it does."""
    record, capabilities, policy = session.record, session.capabilities, session.policy
    denied = knowledge.moved_unseen(record, seen, reading, capabilities, policy)
    if denied is None:
        session.commit(knowledge.read_at_rest(record, reading, capabilities, policy))
    else:
        session.commit(knowledge.memory_is_unknown(record, capabilities))
    return denied


async def _reading(session: Session, deadline: Deadline) -> Reading | Unmeasurable | None:
    """What is resident now, where something hangs on it; else None.

    Where a release was measured, a reading that fails is asked for again for a while.
    """
    record = session.record
    first = record.state is State.SERVING and record.calibration.reading_all_mapped is None
    if record.state is not State.RELEASED and not first:
        return None
    end = Deadline(min(AGAIN_S, deadline.left_s / 2))
    while True:
        reading = await residual(session, deadline_s=deadline.look_s())
        if isinstance(reading, Reading) or not end.left_s or not record.memory_is_free:
            return reading
        await asyncio.sleep(min(session.policy.poll_s, end.left_s))
