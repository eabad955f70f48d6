"""The HTTP session that all clients of one event loop share, and which of its connections a request may use."""

from __future__ import annotations

import asyncio
import atexit
import select
import time
from collections.abc import AsyncGenerator, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import aiohttp

#: Seconds for which an idle connection is kept: longer than a phase. A server may close it sooner.
KEPT_S = 75.0

#: Seconds since its last answer within which a connection may carry a request that must not be sent twice. Servers
#: close idle ones later: uvicorn, and SGLang with it, after 5 s, gunicorn after 2 s. What remains is for the network.
RECENT_S = 1.0


class Broken(aiohttp.ClientError):
    """The connection broke before the head of an answer was complete."""


@dataclass(eq=False, slots=True)
class History:
    """One connection: when it was answered last, and whether any byte of the present answer has come."""

    answered_at: float | None = None
    heard: bool = False


@dataclass(eq=False, slots=True)
class Server:
    """One address: the clients that send to it, and the connections that carried their requests."""

    clients: WeakSet[Any] = field(default_factory=WeakSet)
    connections: WeakSet[Any] = field(default_factory=WeakSet)

    def close(self) -> None:
        """Closes its connections; a request on one of them gets no answer."""
        for protocol in list(self.connections):
            protocol.close()


@dataclass(slots=True)
class Use:
    """Which connection a request may use: one that was answered within `idle_s`, or with None only a new one.

    `reused` says afterwards whether the connection had carried a request before, `history` what became of it.
    """

    server: Server
    idle_s: float | None
    reused: bool = False
    history: History = field(default_factory=History)

    @property
    def stale(self) -> bool:
        """Whether a connection that broke had been kept, and no byte of an answer came."""
        return self.reused and not self.history.heard

    def allows(self, history: History) -> bool:
        """Whether a connection that was used before was answered recently enough."""
        if self.idle_s is None or history.answered_at is None:
            return False
        return time.monotonic() - history.answered_at <= self.idle_s


_USE: ContextVar[Use] = ContextVar("use")


class _Connector(aiohttp.TCPConnector):
    """Any number of connections. One is used again only where the request's `Use` allows it and it has not ended."""

    def __init__(self) -> None:
        super().__init__(limit=0, keepalive_timeout=KEPT_S)
        self._histories: WeakKeyDictionary[Any, History] = WeakKeyDictionary()

    def __del__(self, *_: Any) -> None:
        """Does nothing: `Shared` closes it, and where its loop was closed first, nothing is left to close."""

    async def connect(self, *args: Any, **options: Any) -> Any:
        """A connection that the request may use. Kept ones that it may not use are closed on the way."""
        use = _USE.get()
        while True:
            connection = await super().connect(*args, **options)
            protocol: Any = connection.protocol
            known = self._histories.get(protocol)
            if known is None or (use.allows(known) and not _has_ended(protocol)):
                break
            connection.close()
        use.reused = known is not None
        if known is None:
            known = self._histories[protocol] = History()
            protocol.transport.set_protocol(_Listening(protocol, known))
        use.server.connections.add(protocol)
        use.history = history = known
        history.heard = False

        def answered() -> None:
            history.answered_at = time.monotonic()

        connection.add_callback(answered)
        return connection


class _Listening(asyncio.Protocol):
    """aiohttp's protocol of one connection, and a note of whether any byte came."""

    def __init__(self, protocol: Any, history: History) -> None:
        self._history = history
        self._data_received = protocol.data_received
        for name in ("connection_made", "connection_lost", "eof_received", "pause_writing", "resume_writing"):
            setattr(self, name, getattr(protocol, name))

    def data_received(self, data: bytes) -> None:
        """A part of an answer, or of what nobody asked for."""
        self._history.heard = True
        self._data_received(data)


def _has_ended(protocol: Any) -> bool:
    """Whether the server closed the connection, or sent what nobody asked for, which the loop may not have read yet."""
    if protocol.should_close:
        return True
    waiting = select.poll()
    waiting.register(protocol.transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(waiting.poll(0))


async def _sent_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Raises `Broken` where the connection broke.

    aiohttp sends a GET again after an error of its own kind, also one that went over a new connection, and it may take
    another stale one. `HttpClient.request` decides that instead.
    """
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except aiohttp.ClientConnectionError as error:
        begun = _USE.get().history.heard
        raise Broken("in the middle of its answer" if begun else str(error) or type(error).__name__) from error


class Shared:
    """The one session of an event loop. It is closed with the loop's last client, else when the loop ends."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._servers: dict[str, Server] = {}
        self.session = aiohttp.ClientSession(
            connector=_Connector(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            headers={"Accept-Encoding": "identity"},  # a compressed body may be any size
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            middlewares=(_sent_once,),
        )
        self._end = self._until_the_loop_ends()

    @classmethod
    async def of(cls, client: Any, base_url: str) -> tuple[Shared, Server]:
        """The session of the running loop, and the server there to which the client now belongs."""
        loop = asyncio.get_running_loop()
        shared = _SHARED.get(loop)
        if shared is None:
            _forget(each for each in list(_SHARED) if each.is_closed())
            shared = _SHARED[loop] = cls()
            await anext(shared._end)  # the loop knows of it from here on; nothing is waited for
        server = shared._servers.get(base_url)
        if server is None:
            server = shared._servers[base_url] = Server()
        server.clients.add(client)
        return shared, server

    @staticmethod
    async def leave(client: Any, base_url: str) -> None:
        """The client's connections in the running loop are closed, and with its last client the session."""
        shared = _SHARED.get(asyncio.get_running_loop())
        if shared is None:
            return
        server = shared._servers.get(base_url, Server())
        server.clients.discard(client)
        if not server.clients:
            shared._servers.pop(base_url, None)
            server.close()
        if not any(each.clients for each in shared._servers.values()):
            await shared._end.aclose()

    async def use(self, use: Use, method: str, url: str, **options: Any) -> aiohttp.ClientResponse:
        """Sends one request over a connection that `use` allows, and returns the response, whose body is not read."""
        token = _USE.set(use)
        try:
            return await self.session.request(method, url, allow_redirects=False, **options)
        finally:
            _USE.reset(token)

    async def _until_the_loop_ends(self) -> AsyncGenerator[None, None]:
        """Closes the session. `asyncio.run` ends asynchronous generators after all tasks, before it closes the loop."""
        try:
            yield
        finally:
            await self._close()

    async def _close(self) -> None:
        if _SHARED.get(self._loop) is self:
            del _SHARED[self._loop]
        for server in self._servers.values():
            server.clients.clear()
        await self.session.close()


#: The session of each event loop in which a client was used.
_SHARED: dict[asyncio.AbstractEventLoop, Shared] = {}


def _forget(loops: Iterable[asyncio.AbstractEventLoop]) -> None:
    """Lets go of the sessions of loops that do not run any more, without a word about connections left open."""
    for loop in list(loops):
        _SHARED.pop(loop).session.detach()


atexit.register(lambda: _forget(_SHARED))
