"""Whether an SGLang server is idle: no request runs or is queued in any scheduler."""

from __future__ import annotations

import asyncio
import time

from lifecycle.core.calls import Reply
from lifecycle.core.deadline import Deadline, growing
from lifecycle.core.facts import Grade
from lifecycle.core.verdicts import REQUESTS_RUN, Pending, Proved, Unmeasurable, Verdict

from ..http import HttpClient
from .answers import FLUSH_REFUSED
from .reads import Reads

#: Seconds in which a live server has counted its requests.
COUNT_S = 10.0

#: Seconds for which a flush waits in the engine at a time. The next one waits behind one that its caller has given up.
WAIT_S = 1.0

#: Seconds after a router has closed in which the last request that it sent reaches the scheduler.
ARRIVING_S = 0.2

#: The most seconds between two questions whether it is idle, where it does not wait itself.
POLL_S = 0.1


class Idle:
    """Asks one server. `key` is that of the control endpoints; the rest is known once the server has answered."""

    def __init__(self, http: HttpClient, reads: Reads, key: str | None) -> None:
        self._http, self._reads, self._key = http, reads, key
        self.dp_size = 1
        #: Whether nothing but requests makes a flush wait.
        self.counts_requests_alone = False
        #: When it was found idle first, since it was paused last; None where it was not.
        self.found_at_s: float | None = None

    def since_s(self) -> float | None:
        """The seconds for which no request can have run a step; None where it was not found idle."""
        return None if self.found_at_s is None else time.monotonic() - self.found_at_s

    async def flushed(self, timeout_s: float | None, deadline_s: float) -> Verdict:
        """Proved where a flush answers 200; it waits `timeout_s` in the engine for that. Drops the prefix cache."""
        clock, params = Deadline(deadline_s), None if timeout_s is None else {"timeout": f"{timeout_s:g}"}
        answer = await self._http.request(
            "POST", "/flush_cache", deadline_s=clock.left_s, repeatable=True, key=self._key, params=params
        )
        if answer.status == 400:
            run = self.counts_requests_alone and answer.detail.startswith(FLUSH_REFUSED)
            return Pending(reason=f"requests still run ({answer.detail})", figures={REQUESTS_RUN: run})
        if not answer.ok:
            return Pending(reason=f"/flush_cache answered {answer.status or answer.error}")
        if self.dp_size > 1:
            running = await self._reads.running(time.monotonic() + min(clock.left_s, COUNT_S))
            if running is None:
                return Unmeasurable(reason="it has several data-parallel ranks, and their load counts are frozen")
            if running:
                return Pending(
                    reason=f"{running} requests still run on its data-parallel ranks",
                    figures={REQUESTS_RUN: self.counts_requests_alone},
                )
        self.found_at_s = self.found_at_s or time.monotonic()
        return Proved(grade=Grade.REPORTED, reason="a flush answered 200", figures={"cache_dropped": True})

    async def awaited(self, deadline_s: float) -> Reply:
        """Done once no request runs or is queued, and none is on its way. For a server behind a closed router.

        Found twice: the second time by a question that was asked ARRIVING_S after the router had closed, or later.
        """
        clock, polls = Deadline(deadline_s), growing(POLL_S)
        while clock.left_s:
            asked_s = clock.elapsed_s
            idle = await self._is_idle(clock)
            if idle and asked_s >= ARRIVING_S:
                return Reply("done")
            await asyncio.sleep(min(max(0.0, ARRIVING_S - clock.elapsed_s) if idle else next(polls), clock.left_s))
        return Reply("rejected", detail="requests still ran when the deadline passed")

    async def _is_idle(self, clock: Deadline) -> bool:
        """Whether it is idle, as soon as it is, or once a while has passed. May drop the prefix cache."""
        if self.dp_size == 1:
            return isinstance(await self.flushed(min(WAIT_S, clock.left_s / 2), clock.left_s), Proved)
        return await self._reads.running(time.monotonic() + clock.left_s) == 0
