"""Fake SGLang engines that answer at once: N ports of one process, or a process for each port.

    python benchmarks/fake_sglang.py --count 64 --host 127.0.0.2      # prints {"ports": [...], "pids": [...]}

A benchmark of a client needs servers that cost less than it does: this is one asyncio protocol, and no framework. Each
engine keeps its state (fake_engine.py), and closes without an answer on what kills SGLang. All end when standard input
does.

`/_fake/log` answers what was asked of the engines of this process, `/_fake/set` changes them; neither is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import signal
import socket
import sys
import time
from collections import Counter
from typing import Any

from fake_engine import NULL, Answer, Died, FakeEngine, as_json

REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 422: "Unprocessable Entity", 503: "Service Unavailable"}


class Host:
    """The engines of this process, what was asked of them, and how slow they are."""

    def __init__(self, *, apart: bool) -> None:
        self.apart = apart
        self.engines: list[FakeEngine] = []
        self.recording = False
        self.log: list[list[Any]] = []  # [engine, monotonic s, method, target, body, whether the connection is new]
        self.calls: Counter[str] = Counter()
        self.connections = 0
        #: Which calls are slow ("", "all", "effects": those that are no GET), and by how many seconds.
        self.slow, self.slow_s, self.seed = "", (0.05, 0.5), 0

    def control(self, target: str, body: bytes) -> Answer:
        """`/_fake/log` gives and forgets what was asked; `/_fake/set` changes engines or this."""
        if target == "/_fake/log":
            found = {"log": self.log, "calls": self.calls, "connections": self.connections}
            found["engines"] = [[each.run_until, each.flush_from, each.dead] for each in self.engines]
            answer = as_json(found)
            self.log, self.calls, self.connections = [], Counter(), 0
            return answer
        asked = json.loads(body)
        for name, value in asked.get("host", {}).items():
            setattr(self, name, value)
        for each in self.engines:
            each.asked.clear()
            given = asked.get("engine", {}) | asked.get("engines", {}).get(str(each.index), {})
            if "run_s" in given:
                each.run_until = time.monotonic() + given["run_s"]
            each.refuse_flush_s = given.get("refuse_flush_s", 0.0)
        return NULL

    def delay_s(self, engine: FakeEngine, method: str, target: str) -> float:
        """How long this request takes: the same for the same number of requests of that path to that engine."""
        if not self.slow or (self.slow == "effects" and method == "GET"):
            return 0.0
        path = target.partition("?")[0]
        engine.asked[path] += 1
        drawn = random.Random(f"{self.seed}/{engine.index}/{path}/{engine.asked[path]}")
        return drawn.uniform(*self.slow_s)


class Port:
    """One engine, where it listens, and its connections."""

    def __init__(self, engine: FakeEngine, host: Host) -> None:
        self.engine, self.host = engine, host
        self.server: asyncio.Server | None = None
        self.connections: set[Connection] = set()

    def die(self) -> None:
        """Nothing listens any more, and every connection breaks."""
        self.engine.dead = True
        if self.host.apart:
            os._exit(1)
        if self.server is not None:
            self.server.close()
        for connection in tuple(self.connections):
            connection.transport.abort()


class Connection(asyncio.Protocol):
    """One connection: requests are answered in turn, and the connection is kept unless the client wants it closed."""

    def __init__(self, port: Port) -> None:
        self.port, self.engine = port, port.engine
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self._buffer = b""
        self._new = True
        self._busy: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.port.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.port.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._busy is None:
            head, separator, rest = self._buffer.partition(b"\r\n\r\n")
            if not separator:
                return
            lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            size = int(headers.get("content-length", 0))
            if headers.get("transfer-encoding", "").lower() == "chunked":
                body, end, after = rest.partition(b"0\r\n\r\n")
                if not end:
                    return
                body, rest = b"".join(body.split(b"\r\n")[1::2]), after
            elif len(rest) < size:
                return
            else:
                body, rest = rest[:size], rest[size:]
            self._buffer = rest
            method, target, _ = lines[0].split(" ", 2)
            self._asked(method, target, body, close=headers.get("connection", "").lower() == "close")

    def _asked(self, method: str, target: str, body: bytes, *, close: bool) -> None:
        engine, host = self.engine, self.port.host
        if target.startswith("/_fake/"):
            return self._answer(host.control(target, body), close)
        host.calls[f"{method} {target.partition('?')[0]}"] += 1
        host.connections += self._new
        if host.recording:
            host.log.append([engine.index, time.monotonic(), method, target, body.decode(), self._new])
        self._new = False
        delay_s = host.delay_s(engine, method, target)
        try:
            answer = None if delay_s else engine.handle(method, target, body)
        except Died:
            return self.port.die()
        if isinstance(answer, tuple):
            return self._answer(answer, close)
        self._busy = asyncio.ensure_future(self._answer_later(answer, delay_s, (method, target, body), close))
        return None

    async def _answer_later(self, answer: Any, delay_s: float, request: tuple[str, str, bytes], close: bool) -> None:
        try:
            if answer is None:
                await asyncio.sleep(delay_s)
                answer = self.engine.handle(*request)
            self._answer(answer if isinstance(answer, tuple) else await answer, close)
        except Died:
            return self.port.die()
        self._busy = None
        self.data_received(b"")
        return None

    def _answer(self, answer: Answer, close: bool) -> None:
        status, body = answer
        kind = "application/json" if body[:1] in (b"{", b"n") else "text/plain"
        kept = "close" if close else "keep-alive"
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\ncontent-length: {len(body)}\r\ncontent-type: {kind}\r\n"
        self.transport.write(f"{head}connection: {kept}\r\n\r\n".encode() + body)
        if close:
            self.transport.close()


def sockets(host: str) -> list[socket.socket]:
    """A socket on a free port of this address, and one that keeps others off the same port of 127.0.0.1.

    The library finds the processes of an engine of this host by its port alone.
    """
    while True:
        local = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        local.bind(("127.0.0.1", 0))
        if host == "127.0.0.1":
            return [local]
        other = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            other.bind((host, local.getsockname()[1]))
            return [other, local]
        except OSError:  # taken there: another port
            local.close()
            other.close()


async def serve(host: Host, options: argparse.Namespace, indices: range, said: int, alive: int) -> None:
    """Engines of these numbers listen; their ports are written to `said`, and they end when `alive` is closed."""
    loop, reserved = asyncio.get_running_loop(), list[socket.socket]()
    ports = []
    for index in indices:
        port = Port(FakeEngine(index, options.tag_mib << 20, options.backup), host)
        listening, *kept = sockets(options.host)
        reserved += kept
        port.server = await loop.create_server(lambda port=port: Connection(port), sock=listening, backlog=512)
        host.engines.append(port.engine)
        ports.append(listening.getsockname()[1])
    os.write(said, json.dumps({"ports": ports, "pids": [os.getpid()] * len(ports)}).encode() + b"\n")
    ended = asyncio.Event()
    loop.add_reader(alive, ended.set)
    await ended.wait()


def forked(options: argparse.Namespace) -> None:
    """A process for each engine, below this one; all end with it."""
    ours, theirs = os.pipe()
    ports, pids = [], []
    for index in range(options.count):
        reads, says = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(theirs)
            os.close(reads)
            asyncio.run(serve(Host(apart=True), options, range(index, index + 1), says, ours))
            os._exit(0)
        os.close(says)
        with os.fdopen(reads) as said:
            ports += json.loads(said.readline())["ports"]
        pids.append(pid)
    print(json.dumps({"ports": ports, "pids": pids}), flush=True)
    sys.stdin.read()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--host", default="127.0.0.2")
    parser.add_argument("--apart", action="store_true", help="a process for each engine")
    parser.add_argument("--tag-mib", type=int, default=0, help="memory that each tag really holds")
    parser.add_argument("--backup", action="store_true", help="keeps the weights across a release")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    if options.apart:
        forked(options)
    else:
        asyncio.run(serve(Host(apart=False), options, range(options.count), 1, 0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
