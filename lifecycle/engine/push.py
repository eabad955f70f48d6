"""The calls that a trainer makes on one engine while an update lets it, and the end of a push that failed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from ..core.calls import Call
from ..core.deadline import Deadline
from ..core.ports import ClosesPush
from ..rules import knowledge
from .call import failure, send
from .session import Session


class Pushes:
    """What is being pushed to an engine, and until when it may be."""

    __slots__ = ("_deadline", "_under_way")

    def __init__(self) -> None:
        self._deadline: Deadline | None = None
        self._under_way: tuple[asyncio.Future[None], ...] = ()

    @contextmanager
    def allowed(self, deadline: Deadline) -> Iterator[None]:
        """Inside, the trainer may push."""
        self._deadline = deadline
        try:
            yield
        finally:
            self._deadline = None

    async def ended(self) -> None:
        """None is under way: a barrier does not tell of a call that the trainer is still making."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    async def make(self, session: Session, how: str, args: Mapping[str, Any]) -> Any:
        """The engine's answer to one call; refused where no update lets the trainer push."""
        version = session.record.desired.version
        if self._deadline is None or version is None:
            hint = "; weights are pushed inside updating_weights() or by Pushed(callback)"
            raise session.not_allowed("push", hint)
        call = session.adapter.push_call(how, args, version)
        deadline, ended = self._deadline, asyncio.get_running_loop().create_future()
        self._under_way += (ended,)
        try:
            reply = await send(session, call, deadline_s=deadline.work_s)
        finally:
            self._under_way = tuple(each for each in self._under_way if each is not ended)
            ended.set_result(None)
        if reply.outcome != "done":
            raise failure(reply, call, **session.about("push"), deadline=deadline)
        return reply.value


def closing_call(session: Session) -> Call | None:
    """The call that ends a push which may be open on the engine; None where none can be.

    None too while it may admit requests: an engine would wait for those that run, and let new ones wait behind it.
    """
    adapter: object = session.adapter
    may_be_open = session.record.uncertain.push_open and session.facts.admission == "closed"
    return adapter.close_push_call() if may_be_open and isinstance(adapter, ClosesPush) else None


async def close_cancelled(session: Session, pushes: Pushes, deadline: Deadline) -> None:
    """A push that its caller gave up is ended, after all that was sent for it; where that fails, it stays open.

    Nobody asks the engine anything else after a cancellation, and it would refuse every push to come.
    """
    call = closing_call(session)
    if call is None:
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(deadline.left_s):
            await pushes.ended()
            if not await session.adapter.barrier(deadline_s=deadline.look_s(0.5)):
                return
            session.commit(knowledge.barrier_returned(session.record))
            await send(session, call, deadline_s=deadline.look_s())
