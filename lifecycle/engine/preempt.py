"""A drain is given up for a resume: of all commands it alone has sent nothing, so nothing is unknown after it.

The task that drains is cancelled as `asyncio.timeout` cancels, so that a cancellation by its own caller stays one. It
settles as every cancelled drain does, to paused, and its caller gets `Preempted`. Who asked waits until it has
ended, and then gives its command like anybody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from ..core.commands import Drain, Resume
from ..core.deadline import Deadline
from ..core.errors import Preempted
from ..core.states import State
from ..core.transition import Transition
from .session import Session

#: Who gives a drain up, as its caller is told.
BY = f"{Resume.name}(preempt=True)"


async def preemptible(session: Session, drain: Coroutine[Any, Any, Transition]) -> Transition:
    """What the drain returns or raises; Preempted where `preempt` gave it up."""
    about = session.about(Drain.name)
    try:
        async with asyncio.timeout(None) as limit:
            session.draining = limit
            return await drain
    except TimeoutError:
        if limit.when() is None:  # not given up: it timed out by itself
            raise
        error = Preempted(BY, **about)
        error.settle(session.state)
        raise error from None
    finally:
        session.draining = None


async def preempt(session: Session, deadline: Deadline) -> None:
    """No drain is under way on this engine any more, or the deadline has passed. Nothing else is given up.

    The drain of an offload is part of a move, which goes on to release what is drained: it is not given up either.
    """
    if session.holder() != Drain.name or session.in_move not in (None, Drain.name):
        return
    limit = session.draining
    settles = session.state is State.FAILED  # it ends by itself already
    if limit is not None and limit.when() is None and not settles:
        limit.reschedule(asyncio.get_running_loop().time())
    while session.holder() == Drain.name and deadline.left_s:
        await session.until_let_go(deadline)
