"""A server in front of engines that passes requests on, except those that a test has it answer otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from lifecycle.nodes.agent import Agent
from lifecycle.nodes.agent_protocol import PROTOCOL
from lifecycle.nodes.processes import node_name

#: The path that every look at an engine begins with.
INFO = "/server_info"

#: The paths that only read.
READS = (INFO, "/ready", "/ping", "/v1/loads", "/model_info", "/health")

#: What is answered to a path in place of the engine's answer; None passes the request on.
Instead = Callable[[str], bytes | None]


@dataclass
class Front:
    """Requests to `url` go to `upstreams` in turn, all that only read to `reads` where that is set.

    `instead` may answer them otherwise.
    """

    upstreams: list[str]
    instead: Instead = lambda path: None
    reads: str | None = None
    port: int = 0
    paths: list[str] = field(default_factory=list)

    def url(self, **options: object) -> str:
        """The address for a fleet."""
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"sglang://127.0.0.1:{self.port}?{query}"

    def after_connect(self, instead: Instead | None = None, *, reads_of: str | None = None) -> None:
        """What reads is answered like this, or by this engine, once the first look at the engine was passed on."""

        def first(path: str) -> bytes | None:
            if path == INFO:
                self.instead, self.reads = instead or (lambda path: None), reads_of
            return None

        self.instead = first

    def honest(self) -> None:
        """Every request is passed on to the first engine again."""
        self.instead, self.upstreams, self.reads = (lambda path: None), self.upstreams[:1], None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The answer to one request."""
        upstream = self.upstreams[len(self.paths) % len(self.upstreams)]
        if request.method == "GET" and self.reads is not None:
            upstream = self.reads
        self.paths.append(request.path)
        body = self.instead(request.path)  # which may say what becomes of later requests
        if body is not None:
            return web.Response(body=body)
        sent = await request.read()
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method, upstream + request.path_qs, data=sent, headers={"Content-Type": "application/json"}
            ) as response,
        ):
            return web.Response(status=response.status, body=await response.read())


@asynccontextmanager
async def front(upstreams: Sequence[str], instead: Instead | None = None) -> AsyncIterator[Front]:
    """A front of these engines on a free port, gone at the end."""
    made = Front(list(upstreams))
    made.instead = instead or made.instead
    app = web.Application(client_max_size=1 << 28)
    app.router.add_route("*", "/{path:.*}", made.answer)
    async with serving(app) as made.port:
        yield made


@dataclass
class AgentThatHangs:
    """An agent of this host, at `port`, that stops answering once `hangs` is set."""

    port: int = 0
    hangs: asyncio.Event = field(default_factory=asyncio.Event)
    agent: Agent = field(default_factory=lambda: Agent(threshold_gib=3.0, version="test"))

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The answer to one question; none once it hangs."""
        if self.hangs.is_set():
            await asyncio.sleep(3600)
        answer = await self.agent.questions[request.match_info["name"]](await request.json())
        return web.json_response({"protocol": PROTOCOL, "version": "test", "node": node_name(), **answer})


@asynccontextmanager
async def agent_that_hangs() -> AsyncIterator[AgentThatHangs]:
    """An agent on a free port, gone at the end."""
    made = AgentThatHangs()
    app = web.Application()
    app.router.add_post("/v1/{name}", made.answer)
    async with serving(app) as made.port:
        yield made


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[int]:
    """The free port on which this application listens until the end."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def always(path: str, body: bytes) -> Instead:
    """This body in answer to every request of this path."""
    return lambda asked: body if asked == path else None


def reads(body: bytes) -> Instead:
    """This body in answer to everything that only reads."""
    return lambda asked: body if asked in READS else None


def next_only(path: str, body: bytes, times: int = 1) -> Instead:
    """This body in answer to the next requests of this path."""
    left = [times]

    def instead(asked: str) -> bytes | None:
        if asked != path or not left[0]:
            return None
        left[0] -= 1
        return body

    return instead
