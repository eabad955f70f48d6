"""An HTTP server in this process without an engine: a subclass answers each request, or a test says what it answers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

#: Status, and the body: JSON, or bytes as they are.
Shape = tuple[int, Any]


@dataclass
class Request:
    """What a client sent."""

    method: str
    path: str
    query: dict[str, list[str]]
    body: Any

    def __str__(self) -> str:
        query = "&".join(f"{name}={value}" for name, values in self.query.items() for value in values)
        return f"{self.method} {self.path}" + (f"?{query}" if query else "")


@dataclass(kw_only=True)
class AnsweringServer:
    """Listens on a port of this host from `async with` on."""

    #: Answers that stand instead of its own, by `METHOD /path`: the next ones, or all where the last is repeated.
    scripted: dict[str, list[Shape]] = field(default_factory=dict)
    seen: list[Request] = field(default_factory=list)
    #: Paths that are not answered.
    hangs: set[str] = field(default_factory=set)
    port: int = 0

    async def answer(self, request: Request, headers: dict[str, str]) -> Shape:
        """What the server answers of itself."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop_listening()

    async def stop_listening(self) -> None:
        """Its port is refused, and its connections are closed."""
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def script(self, request: str, *answers: Shape) -> None:
        """These answers come instead of its own, the last one again and again."""
        self.scripted[request] = list(answers)

    def sent(self, *paths: str) -> list[str]:
        """The requests with these paths (default: every POST), in order."""
        return [str(each) for each in self.seen if (each.path in paths if paths else each.method == "POST")]

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                await self._one(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # a test has ended, or its client left
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        method, target = lines[0].split()[:2]
        parts = urlsplit(target)
        body = json.loads(raw) if raw else None
        request = Request(method, parts.path, parse_qs(parts.query, keep_blank_values=True), body)
        self.seen.append(request)
        if parts.path in self.hangs:
            await asyncio.Event().wait()
        scripted = self.scripted.get(f"{method} {parts.path}")
        if scripted:
            status, value = scripted.pop(0) if len(scripted) > 1 else scripted[0]
        else:
            status, value = await self.answer(request, headers)
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        writer.write(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n" % (status, len(content)) + content)
