"""What becomes of the requests of an engine between its pause and its resume, by what it or its router counted.

Counted before a pause of an engine that serves, once it is drained, and before it is opened again. That is at most one
read each time, which never decides anything: one that fails, or is late, leaves the fates unknown, and the command goes
on. Only the driver that paused the engine has what was counted before. It is dropped where anybody else may have opened
the engine meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from ..core.commands import Command, Drain, Pause, Resume
from ..core.deadline import Deadline
from ..core.ports import CountsRequests, Router
from ..core.requests import NOT_KNOWN, RequestCounts, RequestFates
from ..core.states import State
from ..rules.fates import fates_between, later

#: Seconds that a count may take. It is kept waiting for by a command, and never worth much of its time.
COUNT_S = 1.0

_log = logging.getLogger("lifecycle")


@dataclass(frozen=True, slots=True)
class InFlight:
    """Counts the requests of one engine by its router, which is closed for it: no more come, and those open end."""

    router: Router
    engine: str

    async def request_counts(self, *, deadline_s: float) -> RequestCounts | None:
        """The requests that the router has sent to the engine and that have not ended; None where it does not count."""
        count = await self.router.in_flight(self.engine)
        return None if count is None else RequestCounts("router", boot="router", open=count)


class Requests:
    """The requests of one engine since this driver paused it."""

    def __init__(self, engine: object) -> None:
        #: Who may tell, in order: the engine, and the router that was closed for it.
        self._engine = engine if isinstance(engine, CountsRequests) else None
        self.router: CountsRequests | None = None
        self._before: RequestCounts | None = None
        self._by: CountsRequests | None = None
        self._told = NOT_KNOWN
        #: Whether this driver paused it, and its requests were not told of since.
        self._paused = False

    async def before(self, command: Command, state: State, deadline: Deadline) -> RequestFates | None:
        """Counts before a command pauses an engine that serves; returns the fates before it resumes one."""
        if isinstance(command, Resume):
            return await self._fates(deadline)
        if isinstance(command, Pause) and state is State.SERVING:
            self.forget()
            for each in (self._engine, self.router):
                self._before = await _counted(each, deadline) if each is not None else None
                if self._before is not None:
                    self._by = each
                    break
        return None

    async def after(self, command: Command, before: RequestFates | None, deadline: Deadline) -> RequestFates | None:
        """The fates once the proofs of a command hold, where they are known then; else those from before its calls."""
        return await self._fates(deadline) if isinstance(command, Drain) else before

    def forget(self) -> None:
        """What was counted before says nothing any more."""
        self._before = self._by = None
        self._told = NOT_KNOWN

    def entered(self, source: State, dest: State, trigger: str, fates: RequestFates | None) -> RequestFates | None:
        """The engine goes along one edge; returns the fates to be told with it.

        Those of an engine that this driver paused, and that somebody else opened, or that has ended, are unknown.
        """
        if source is State.SERVING and dest is State.PAUSING:
            self._paused = True
        over = dest in (State.SERVING, State.GONE)
        if over and self._paused and fates is None:
            fates = NOT_KNOWN
        if over:
            self._paused = False
        if over or dest is State.RESUMING or trigger == "contradicted":
            self.forget()
        return fates

    async def _fates(self, deadline: Deadline) -> RequestFates:
        if self._by is None:
            return NOT_KNOWN
        fates = fates_between(self._before, await _counted(self._by, deadline))
        if later(self._told, fates) is not None:
            return NOT_KNOWN
        self._told = fates if fates.are_known else self._told
        return fates


async def _counted(by: CountsRequests, deadline: Deadline) -> RequestCounts | None:
    """What was counted; None where that was not told in time. A router may be the user's, and raise."""
    limit_s = min(COUNT_S, deadline.work_s / 4)
    try:
        async with asyncio.timeout(limit_s):
            return await by.request_counts(deadline_s=limit_s)
    except Exception as problem:
        _log.warning("its requests were not counted: %s", str(problem) or type(problem).__name__)
        return None
