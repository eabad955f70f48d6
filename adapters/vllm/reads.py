"""Reads of a vLLM server, which change nothing: requests, and what several of them tell together."""

from __future__ import annotations

import asyncio

from lifecycle.core.facts import Fact

from ..http import BODY_LIMIT, Answer, HttpClient, together
from .answers import LIMITS, checksum_of, faults, server_load, tokens_generated

SERVER_INFO = "/server_info?config_format=json"

#: Seconds between two reads of a counter of tokens.
COUNT_S = 0.2

#: What a server says whose engine process has ended. Source: vllm 0.32.0, v1/engine/exceptions.py.
_CORE_DIED = "EngineCore encountered an issue"


class Reads:
    """The reads of one server.

    The front end answers `/server_info`, `/version` and `/load` itself. `/is_paused` and `/weight_info` pass through
    the engine process, behind everything that was sent to it before. `/health` says whether that process lives.
    """

    def __init__(self, http: HttpClient, key: str | None) -> None:
        self._http = http
        self._key = key

    async def get(self, path: str, deadline_s: float, *, fresh: bool = False) -> Answer:
        """The answer of a GET; `fresh`: over a new connection, so that a balancer may choose another server."""
        limit = LIMITS.get(path.partition("?")[0], BODY_LIMIT)
        return await self._http.request("GET", path, deadline_s=deadline_s, key=self._key, limit=limit, fresh=fresh)

    async def of_facts(
        self, want: frozenset[Fact], observable: frozenset[Fact], deadline_s: float
    ) -> dict[str, Answer]:
        """The answers of the reads that tell what is wanted, by path, all made at once.

        One at least says that the engine process lives: a front end outlives it by some seconds.
        """
        paths = [SERVER_INFO] if Fact.BOOT in want or not want & observable else []
        if want & {Fact.ADMISSION, Fact.CLOSED, Fact.RUNNING}:
            paths.append("/is_paused")
        if Fact.CONTENTS in want & observable:
            paths.append("/weight_info")
        if not {"/is_paused", "/weight_info"} & set(paths):
            paths.append("/health")
        if Fact.RUNNING in want & observable:
            paths.append("/load")
        return dict(zip(paths, await together(*(self.get(path, deadline_s) for path in paths)), strict=True))

    async def core_died(self, answers: dict[str, Answer], deadline_s: float) -> bool:
        """Whether the engine process has ended though the front end answers."""
        if any(answer.status == 500 and _CORE_DIED in answer.detail for answer in answers.values()):
            return True
        health = answers.get("/health")
        if health is None and any((answer.status or 0) >= 500 for answer in answers.values()):
            health = await self.get("/health", deadline_s)
        return health is not None and health.status == 503

    async def fault(self, deadline_s: float) -> str:
        """What is wrong with an engine process, in words; empty where nothing is. The front end answers by itself.

        A process that failed answers no call until it is repaired, and ends where that takes too long. `/health` is 200
        meanwhile. Source: vllm 0.27.1 to 0.32.0, v1/fault_tolerance/engine_core_sentinel.py; read.
        """
        return faults(await self.get("/fault_tolerance/status", deadline_s))

    async def steps_run(self, deadline_s: float) -> bool:
        """Whether the engine generates tokens: their number grows. Gauges of requests stand still between steps."""
        before = tokens_generated(await self.get("/metrics", deadline_s))
        await asyncio.sleep(min(COUNT_S, deadline_s))
        after = tokens_generated(await self.get("/metrics", deadline_s))
        return before is not None and after is not None and after > before

    async def checksum(self, deadline_s: float) -> str | None:
        """One checksum of all weights, where the server makes them."""
        path, body = "/weight_checker", {"action": "checksum"}
        answer = await self._http.request(
            "POST", path, deadline_s=deadline_s, repeatable=True, json_body=body, key=self._key, limit=LIMITS[path]
        )
        return checksum_of(answer)

    async def load(self, deadline_s: float) -> int | None:
        """The open requests that the server counts, where it counts them."""
        return server_load(await self.get("/load", deadline_s))
