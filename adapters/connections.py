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
from weakref import WeakSet

import aiohttp
from yarl import URL

#: Seconds for which an idle connection is kept: longer than a phase. A server may close it sooner.
KEPT_S = 75.0

#: Seconds since its last answer within which a connection may carry a request that must not be sent twice. Servers
#: close idle ones later: uvicorn, and SGLang with it, after 5 s, gunicorn after 2 s. What remains is for the network.
RECENT_S = 1.0


class Broken(aiohttp.ClientError):
    """The connection broke before the head of an answer was complete."""


class History(asyncio.Protocol):
    """One connection: when its last byte came, whether any of the present answer has, and how it ended.

    It stands between the connection and aiohttp's protocol of it, to which it passes everything on.
    """

    def __init__(self, protocol: Any) -> None:
        self.heard_at: float | None = None
        self.heard = False
        self.ended = ""
        self.server: Server | None = None
        self._data_received, self._connection_lost = protocol.data_received, protocol.connection_lost
        self._unread = select.poll()
        self._unread.register(protocol.transport.get_extra_info("socket").fileno(), select.POLLIN)
        for name in ("connection_made", "eof_received", "pause_writing", "resume_writing"):
            setattr(self, name, getattr(protocol, name))

    def data_received(self, data: bytes) -> None:
        """A part of an answer, or of what nobody asked for."""
        self.heard, self.heard_at = True, time.monotonic()
        self._data_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        """The connection has ended."""
        self.ended = "" if error is None else str(error)
        self._connection_lost(error)

    @property
    def has_unread(self) -> bool:
        """Whether the server closed the connection, or sent what nobody asked for, which the loop has not read yet."""
        return bool(self._unread.poll(0))


@dataclass(eq=False, slots=True)
class Server:
    """One address: the clients that send to it, and the connections that carried their requests."""

    clients: WeakSet[Any] = field(default_factory=WeakSet)
    connections: WeakSet[Any] = field(default_factory=WeakSet)

    def close(self) -> None:
        """Closes its connections; a request on one of them gets no answer."""
        for protocol in list(self.connections):
            protocol.close()


@dataclass(eq=False, slots=True)
class Use:
    """Which connection a request may use: one that was answered within `idle_s`, or with None only a new one.

    `reused` says afterwards whether the connection had carried a request before, `history` what became of it.
    """

    server: Server
    idle_s: float | None
    reused: bool = False
    history: History | None = None

    @property
    def stale(self) -> bool:
        """Whether a connection that broke had been kept, and no byte of an answer came."""
        return self.reused and not (self.history is not None and self.history.heard)

    def allows(self, history: History) -> bool:
        """Whether a connection that was used before was answered recently enough, and has nothing to be read."""
        if self.idle_s is None or history.heard_at is None:
            return False
        return time.monotonic() - history.heard_at <= self.idle_s and not history.has_unread

    def broken(self, error: BaseException | None = None) -> Broken:
        """The error of a request whose connection broke."""
        if self.history is not None and self.history.heard:
            return Broken("in the middle of its answer")
        said = str(error or "") or (self.history.ended if self.history is not None else "")
        return Broken(said or "the server closed it")


_USE: ContextVar[Use] = ContextVar("use")


class _Connector(aiohttp.TCPConnector):
    """Any number of connections. One is used again only where the request's `Use` allows it and it has not ended."""

    def __init__(self) -> None:
        super().__init__(limit=0, keepalive_timeout=KEPT_S)

    def __del__(self, *_: Any) -> None:
        """Does nothing: `Shared` closes it, and where its loop was closed first, nothing is left to close."""

    async def connect(self, *args: Any, **options: Any) -> Any:
        """A connection that the request may use. Kept ones that are too old or have ended are closed on the way.

        Raises `Broken` where the request has had one. aiohttp sends a GET again after an error of its own kind, also
        one that went over a new connection, and it may take another stale one. `HttpClient.request` decides that.
        """
        use = _USE.get()
        if use.history is not None:
            raise use.broken()
        idle: list[Any] = []
        try:
            while True:
                connection = await super().connect(*args, **options)
                protocol: Any = connection.protocol
                history = protocol.transport.get_protocol()
                if not isinstance(history, History):
                    history = History(protocol)
                    protocol.transport.set_protocol(history)
                    break
                if use.idle_s is None:
                    idle.append(connection)
                elif use.allows(history) and not protocol.should_close:
                    use.reused, history.heard = True, False
                    break
                else:
                    connection.close()
        finally:
            for each in idle:  # others may use them still
                each.release()
        if history.server is not use.server:  # one address may be spelled in several ways
            history.server = use.server
            use.server.connections.add(protocol)
        use.history = history
        return connection


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
        if client not in server.clients:
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

    async def use(self, use: Use, method: str, url: URL, **options: Any) -> aiohttp.ClientResponse:
        """Sends one request over a connection that `use` allows, and returns the response, whose body is not read.

        Raises `Broken` where the connection broke before that.
        """
        token = _USE.set(use)
        try:
            return await self.session.request(method, url, allow_redirects=False, **options)
        except aiohttp.ClientConnectorError:
            raise
        except aiohttp.ClientConnectionError as error:
            raise use.broken(error) from error
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
