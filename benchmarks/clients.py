"""What a cycle is compared with: the calls that it needs, its own calls sent again, and what users write today.

- **The 12 needed calls**: by bare aiohttp over kept connections, one gather a phase. An effect that can be proved by
  one answer has that answer, and nothing is looked at twice.
- **Its own calls**: the requests that a cycle of this library was seen to send, in the same order for each engine, by
  the same bare client. What is left of the difference is this library's own time.
- **The users' 7 calls**: unproved, by `requests` on 64 threads, as frameworks have it: a connection for each call
  (slime's rollout engine calls `requests.post`), and with a Session for each engine.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import aiohttp
from fakes import Request

THREADS = 64


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to an engine."""

    method: str
    target: str
    body: bytes | None = None


def post(path: str, **body: Any) -> Ask:
    """A POST with this body."""
    return Ask("POST", path, json.dumps(body).encode())


def tags(path: str, *named: str) -> Ask:
    """A call about memory of these tags."""
    return post(path, tags=list(named))


def needed(model_path: str, version: str) -> tuple[tuple[Ask, ...], ...]:
    """The 12 needed calls of a cycle from disk, in their phases."""
    release, resume = "/release_memory_occupation", "/resume_memory_occupation"
    update = post("/update_weights_from_disk", model_path=model_path, weight_version=version, flush_cache=True)
    token = post("/generate", text="a", sampling_params={"max_new_tokens": 1, "temperature": 0})
    return (
        (post("/pause_generation", mode="abort"),),
        (post("/flush_cache"),),
        (post("/flush_cache"), tags(release, "kv_cache"), tags(release, "weights")),
        (tags(resume, "weights"),),
        (update, Ask("GET", "/model_info")),
        (tags(resume, "kv_cache"), post("/flush_cache")),
        (post("/continue_generation"), token),
    )


def users(model_path: str, version: str) -> tuple[Ask, ...]:
    """The 7 calls that frameworks send for the same cycle, each a phase: nothing is asked before or afterwards."""
    return (
        post("/pause_generation", mode="abort"),
        post("/flush_cache"),
        tags("/release_memory_occupation", "kv_cache", "weights"),
        tags("/resume_memory_occupation", "weights"),
        post("/update_weights_from_disk", model_path=model_path, weight_version=version, flush_cache=True),
        tags("/resume_memory_occupation", "kv_cache"),
        post("/continue_generation"),
    )


def sequences(
    requests: Iterable[Request], count: int, rename: Callable[[str], str] = lambda body: body
) -> list[list[Ask]]:
    """What each of `count` engines was asked, in order; `rename` changes bodies."""
    found: list[list[Ask]] = [[] for _ in range(count)]
    for each in requests:
        body = rename(each.body).encode() if each.method == "POST" else None
        found[each.engine].append(Ask(each.method, each.target, body))
    return found


def bare() -> aiohttp.ClientSession:
    """A session that keeps its connections."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=120)
    return aiohttp.ClientSession(connector=connector, headers={"Accept-Encoding": "identity"})


async def ask(session: aiohttp.ClientSession, base: str, each: Ask) -> int:
    """Sends it and reads the answer, whatever it says; its status."""
    headers = {"Content-Type": "application/json"} if each.body else {}
    async with session.request(each.method, base + each.target, data=each.body, headers=headers) as response:
        await response.read()
        return response.status


async def one_after_another(session: aiohttp.ClientSession, base: str, asks: Sequence[Ask]) -> None:
    """These requests to one engine."""
    for each in asks:
        await ask(session, base, each)


async def in_phases(
    session: aiohttp.ClientSession, bases: Sequence[str], phases: Mapping[str, Any] | Sequence[Sequence[Ask]]
) -> None:
    """Each phase to all engines at once; by engine where the phases differ, as those of real engines do."""
    by_engine = phases if isinstance(phases, Mapping) else dict.fromkeys(bases, phases)
    for number in range(len(by_engine[bases[0]])):
        await asyncio.gather(*(one_after_another(session, base, by_engine[base][number]) for base in bases))


async def replay(session: aiohttp.ClientSession, bases: Sequence[str], asked: Sequence[Sequence[Ask]]) -> None:
    """Its own sequence to each engine, all engines at once."""
    await asyncio.gather(*(one_after_another(session, base, asks) for base, asks in zip(bases, asked, strict=True)))


class Users:
    """The users' ways, each with its clients made once, as a program has them."""

    def __init__(self, bases: Sequence[str], calls: Sequence[Ask]) -> None:
        import httpx
        import requests

        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self.bases, self.calls = bases, calls
        self._pool = ThreadPoolExecutor(THREADS)
        self._requests = requests
        self._sessions = {base: requests.Session() for base in bases}
        self._httpx = httpx.Client(timeout=None)
        self._async_httpx = httpx.AsyncClient(timeout=None, limits=limits)

    def by_requests(self, *, session: bool) -> None:
        """Each call to all engines by `requests` on threads, one call after the other."""

        def send(base: str, each: Ask) -> None:
            by = self._sessions[base] if session else self._requests
            by.request(each.method, base + each.target, json=json.loads(each.body or b"{}")).raise_for_status()

        for each in self.calls:
            list(self._pool.map(send, self.bases, [each] * len(self.bases)))

    def by_httpx(self) -> None:
        """Each call to one engine after the other, by one httpx client."""
        for each in self.calls:
            for base in self.bases:
                self._httpx.request(each.method, base + each.target, content=each.body).raise_for_status()

    async def by_async_httpx(self) -> None:
        """Each call to all engines at once, by one asynchronous httpx client."""
        for each in self.calls:
            asked = [
                self._async_httpx.request(each.method, base + each.target, content=each.body) for base in self.bases
            ]
            for answer in await asyncio.gather(*asked):
                answer.raise_for_status()

    async def aclose(self) -> None:
        """Closes what was kept."""
        self._pool.shutdown()
        self._httpx.close()
        await self._async_httpx.aclose()
        for each in self._sessions.values():
            each.close()
