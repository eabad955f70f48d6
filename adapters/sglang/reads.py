"""Reads of an SGLang server, which change nothing: GET requests, and what several of them tell together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from lifecycle.core.deadline import growing
from lifecycle.core.facts import Admission, Fact

from ..http import BODY_LIMIT, Answer, HttpClient
from .answers import LIMITS, counted_s_ago, is_empty, loads
from .versions import Effects

#: The most seconds between two reads of the load counts, which an idle scheduler updates a few times a second.
COUNT_S = 0.05

#: Seconds after which load counts that were not updated count as standing still.
STILL_S = 1.0


async def together(*asks: Coroutine[Any, Any, Any] | None) -> list[Any]:
    """The results of these coroutines, which run at once, the first in this task; None where there is none."""
    wanted = [each for each in asks if each is not None]
    if len(wanted) == 1:
        results = [await wanted[0]]
    else:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in wanted[1:]]
            results = [await wanted[0]]
        results += [task.result() for task in tasks]
    return [None if each is None else results.pop(0) for each in asks]


async def in_turn(*asks: Coroutine[Any, Any, Any] | None) -> list[Any]:
    """The results of these coroutines, which run one after another, over one connection; None where there is none."""
    results, ahead = list[Any](), list(asks)
    try:
        while ahead:
            each = ahead.pop(0)
            results.append(None if each is None else await each)
    finally:
        for unasked in ahead:
            if unasked is not None:
                unasked.close()
    return results


class Reads:
    """The reads of one server. `key` is that of the normal endpoints."""

    def __init__(self, http: HttpClient, key: str | None) -> None:
        self._http = http
        self._key = key
        #: What the server's version has, once it has answered.
        self.effects = Effects()

    async def get(self, path: str, deadline_s: float, *, fresh: bool = False) -> Answer:
        """The answer of a GET; `fresh`: over a new connection, so that a balancer may choose another server."""
        limit = LIMITS.get(path, BODY_LIMIT)
        return await self._http.request("GET", path, deadline_s=deadline_s, key=self._key, limit=limit, fresh=fresh)

    async def traffic(self, want: frozenset[Fact], end: float) -> tuple[Answer | None, Admission | None, int | None]:
        """The answer of `/ready`, whether requests are admitted, and how many run; None of what is not wanted.

        Open where `/ready` is 200, closed where it is 503 and `/ping` is 200, else unknown. A `/health` asked of a
        paused server makes both 503, paused or serving, until the next `/health` succeeds. Where `/ping` is always 200
        it does not tell the two apart. Of an open server the requests are not counted: they come and go.
        """
        ready: Answer | None = None
        admission: Admission | None = None
        running: int | None = None
        if Fact.ADMISSION in want and self.effects.ready:
            ready = await self.get("/ready", end - time.monotonic())
            admission = "open" if is_empty(ready, 200) else None
            if Fact.CLOSED in want and self.effects.ping_is_health and is_empty(ready, 503):
                ping = await self.get("/ping", end - time.monotonic())
                admission = "closed" if is_empty(ping, 200) else None
        if Fact.RUNNING in want and admission != "open":
            running = await self.running(end)
        return ready, admission, running

    async def running(self, end: float) -> int | None:
        """Requests that run or wait in the scheduler; None where the load counts are not updated within a second.

        Nor are those waited for that were not updated in the second before.
        Source: sglang 0.5.23, measured: retract and in_place freeze the counts at their last value. Before 0.5.13 the
        scheduler counts when it is asked, paused or not.
        """
        first, polls = await self._loads(end), growing(COUNT_S)
        if first is not None and not self.effects.stamps_loads:
            return first[0]
        while first is not None and first[3] < STILL_S and time.monotonic() < min(end, first[2] + STILL_S):
            await asyncio.sleep(next(polls))
            again = await self._loads(end)
            if again is None or len(again[1]) != len(first[1]):
                continue
            if all(now != then for now, then in zip(again[1], first[1], strict=True)):
                return again[0]
        return None

    async def _loads(self, end: float) -> tuple[int, tuple[float, ...], float, float] | None:
        """Requests, when each rank counted, when that was read, and how many seconds old it was then (0: unknown)."""
        answer = await self.get("/v1/loads?include=core,queues", end - time.monotonic())
        found = loads(answer, stamped=self.effects.stamps_loads)
        return None if found is None else (*found, time.monotonic(), counted_s_ago(answer) or 0.0)
