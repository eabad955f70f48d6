"""An HTTP server of a test that counts connections and requests, and breaks connections where a test wants it."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass, field

#: Bytes of the body of /long: more than a client reads at once.
LONG = 600_000

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a=b\r\n\r\nok"


@dataclass
class CountingServer:
    """Answers 200, except where the path says otherwise: /drop, /reset, /part, /long or /hang.

    `per_connection`: a request beyond so many on one connection is read, and the connection is then closed unanswered.
    That is what a client sees whose request crosses with the end of an idle connection.
    """

    per_connection: int = 1000
    port: int = 0
    connections: int = 0
    #: The connections whose end the server has seen.
    ended: int = 0
    seen: list[str] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    #: The path that is answered like /hang or /drop once the first connection was broken.
    then: str = ""
    _server: asyncio.Server | None = None

    async def __aenter__(self) -> CountingServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        for writer in self.writers:
            writer.close()

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Nothing listens any more; connections stay."""
        assert self._server is not None
        self._server.close()

    def end_idle(self) -> None:
        """Ends every connection at once: the client's kernel knows, its event loop has not read it."""
        for writer in self.writers:
            if not writer.is_closing():
                writer.get_extra_info("socket").shutdown(socket.SHUT_WR)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.ended += 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served = 0
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    await reader.readexactly(int(line.split(b":")[1]))
            method, path = head.decode().split()[:2]
            self.seen.append(f"{method} {path}")
            self.heads.append(head)
            served += 1
            if served > self.per_connection:
                if self.then == "stop":
                    self.stop()
                return
            if self.then and self.connections > 1:
                path = self.then
            if path == "/drop":
                return
            if path == "/reset":
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return
            if path == "/long":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LONG + b"a" * LONG)
                continue
            if path == "/hang":
                await reader.read()
                return
            if path == "/part":
                writer.write(OK[:12])
                return
            writer.write(OK)
