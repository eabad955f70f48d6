"""What the library asks of a host: files of /proc opened and seconds, beside the least that answers the same.

    python benchmarks/host_cost.py [--engines 64] [--repeat 5] [--connect 64 256] [--json]

`find` looks up the listeners of all ports at once; its floor is one scan of the sockets. `read` weighs all trees at
once; its floor is one reading of the process table, and of each process's rollup and command line. `connect` makes a
fleet of processes that answer as one recorded engine does; its floor is three calls an engine, and one scan. Way and
floor alternate in one run, and the figure that is compared is the ratio of their medians.

Files are counted by the interpreter's audit events for `open` and `listdir` under /proc: links read in /proc/PID/fd
are not among them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
from lifecycle.adapters.http import HttpClient
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import Fleet
from lifecycle.core.readings import Process, Reading
from lifecycle.nodes.processes import by_pid
from lifecycle.nodes.this_host import ThisHost

DEADLINE_S = 300.0

#: Answers what a connect asks, by path; POSTs as GETs.
READS = ("server_info", "model_info", "ready", "ping", "v1/loads")

#: Listens on COUNT ports in each of PROCESSES processes, prints the ports, and ends with stdin.
_LISTEN = """
import json, os, socket, sys
count, processes = int(sys.argv[1]), int(sys.argv[2])
reader, writer = os.pipe()
for part in range(processes):
    if os.fork() == 0:
        mine = [socket.create_server(("127.0.0.1", 0)) for _ in range(count // processes + (part < count % processes))]
        os.write(writer, "".join(f"{each.getsockname()[1]}\\n" for each in mine).encode())
        os.close(writer)
        sys.stdin.read()
        os._exit(0)
os.close(writer)
print(json.dumps([int(line) for line in os.fdopen(reader)]), flush=True)
sys.stdin.read()
"""

#: COUNT processes with one below each; prints the pids of those above, and ends with stdin.
_TREES = """
import json, os, sys
pids = []
ready, tell = os.pipe()
for _ in range(int(sys.argv[1])):
    pid = os.fork()
    if pid == 0:
        if os.fork() == 0:
            os.write(tell, b"x")
        sys.stdin.read()
        os._exit(0)
    pids.append(pid)
for _ in pids:
    os.read(ready, 1)
print(json.dumps(pids), flush=True)
sys.stdin.read()
"""

#: COUNT processes that answer each path of the JSON in argv[2], with a boot of their own; prints their ports.
_SERVE = """
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
answers = json.loads(sys.argv[2])
class Server(ThreadingHTTPServer):
    request_queue_size, daemon_threads = 64, True
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, body = answers.get(self.path.partition("?")[0], (404, {}))
        if self.path == "/server_info":
            body = {**body, "random_seed": os.getpid()}
        for row in body.get("loads", ()):
            row["timestamp"] = time.time()
        content = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} OK\\r\\nContent-Length: {len(content)}\\r\\n"
        head += "Content-Type: application/json\\r\\n\\r\\n"
        self.wfile.write(head.encode() + content)
    do_POST = do_GET
    def log_message(self, *_):
        pass
reader, writer = os.pipe()
children = []
for _ in range(int(sys.argv[1])):
    child = os.fork()
    if child == 0:
        server = Server(("127.0.0.1", 0), Handler)
        os.write(writer, f"{server.server_address[1]}\\n".encode())
        os.close(writer)
        server.serve_forever()
    children.append(child)
os.close(writer)
print(json.dumps([int(line) for line in os.fdopen(reader)]), flush=True)
sys.stdin.read()
for child in children:
    os.kill(child, 9)
    os.waitpid(child, 0)
"""


@contextmanager
def _child(script: str, *arguments: object) -> Iterator[list[int]]:
    """Runs the script beside; yields the numbers that it prints."""
    command = [sys.executable, "-S", "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()


def listening(count: int, processes: int = 2) -> Any:
    """A context of `count` ports that as many processes listen on; yields the ports."""
    return _child(_LISTEN, count, processes)


def small_trees(count: int) -> Any:
    """A context of `count` small processes, each with one below it; yields the pids of those above."""
    return _child(_TREES, count)


def serving(count: int) -> Any:
    """A context of `count` processes that answer a connect as an engine does; yields their ports."""
    return _child(_SERVE, count, json.dumps(recorded()))


def recorded() -> dict[str, tuple[int, object]]:
    """What a loopback engine answers to what a connect asks of it, by path."""
    found: dict[str, tuple[int, object]] = {}
    with LoopbackProcess.start(weights_mib=16, kv_mib=16) as engine:
        for path in (*READS, "abort_request"):
            method = "POST" if path == "abort_request" else "GET"
            request = urllib.request.Request(f"{engine.url}/{path}", method=method)
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    found[f"/{path}"] = (answer.status, json.loads(answer.read() or b"{}"))
            except urllib.error.HTTPError as error:
                found[f"/{path}"] = (error.code, {})
                error.close()
    return found


class Opened:
    """Counts the files and folders of /proc that this process opens, from `begin()` on."""

    def __init__(self) -> None:
        self.count = 0
        sys.addaudithook(self._event)

    def begin(self) -> None:
        self.count = 0

    def _event(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith("/proc"):
            self.count += 1


async def find_at_once(ports: Sequence[int]) -> None:
    """All ports are looked up at once, and each has a process."""
    found = await asyncio.gather(*(ThisHost().find(port=port, deadline_s=DEADLINE_S) for port in ports))
    assert all(isinstance(each, tuple) and each for each in found)


async def find_floor(ports: Sequence[int]) -> None:
    """One scan of the sockets."""
    psutil.net_connections(kind="tcp")


async def read_at_once(roots: Sequence[Process]) -> None:
    """All trees are weighed at once."""
    ask = (ThisHost().read((root,), kind="cpu", scope="process", deadline_s=DEADLINE_S) for root in roots)
    found = await asyncio.gather(*ask)
    assert all(isinstance(each, Reading) and len(each.holders) == 2 for each in found)


async def read_floor(roots: Sequence[Process]) -> None:
    """One reading of the process table, and of the rollup and the command line of each process of the trees."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            content = _content(f"/proc/{name}/stat")
            if content:
                parents[int(name)] = int(content.rpartition(b")")[2].split()[1])
    tops = {root.pid for root in roots}
    for pid in (pid for pid, parent in parents.items() if pid in tops or parent in tops):
        assert b"Pss:" in _content(f"/proc/{pid}/smaps_rollup")
        _content(f"/proc/{pid}/cmdline")


def _content(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


async def connect_at_once(ports: Sequence[int]) -> None:
    """A fleet of these engines connects."""
    async with Fleet.connect([f"loopback://127.0.0.1:{port}" for port in ports]) as fleet:
        assert len(fleet.engines) == len(ports)


async def connect_floor(ports: Sequence[int]) -> None:
    """Three calls an engine, all engines at once, and one scan of the sockets."""

    async def calls(port: int) -> None:
        http = HttpClient(f"http://127.0.0.1:{port}")
        try:
            for path in ("/server_info", "/model_info", "/ready"):
                assert (await http.request("GET", path, deadline_s=DEADLINE_S)).status is not None
        finally:
            await http.aclose()

    await asyncio.gather(*(calls(port) for port in ports))
    psutil.net_connections(kind="tcp")


Way = Callable[[Any], Awaitable[None]]


def compared(name: str, way: Way, floor: Way, asked: Any, *, repeat: int, opened: Opened) -> dict[str, Any]:
    """Median seconds and files of /proc of both, measured in turns, and the ratio of the seconds."""
    took: dict[Way, list[float]] = {floor: [], way: []}
    files: dict[Way, list[int]] = {floor: [], way: []}

    async def once(which: Way) -> None:
        opened.begin()
        begun = time.perf_counter()
        await which(asked)
        took[which].append(time.perf_counter() - begun)
        files[which].append(opened.count)

    for _ in range(repeat):
        for which in took:
            asyncio.run(once(which))
    medians = {which: statistics.median(each) for which, each in took.items()}
    return {
        "what": name,
        "count": len(asked),
        "ms": round(medians[way] * 1e3, 1),
        "floor_ms": round(medians[floor] * 1e3, 1),
        "ratio": round(statistics.median(one / other for one, other in zip(took[way], took[floor], strict=True)), 2),
        "files": statistics.median_low(files[way]),
        "floor_files": statistics.median_low(files[floor]),
    }


def measure(*, engines: int, repeat: int, connect: Sequence[int] = ()) -> Iterator[dict[str, Any]]:
    """Yields a row for each way: what, count, ms, floor_ms, ratio, files, floor_files."""
    opened = Opened()
    with listening(engines) as ports:
        yield compared("find", find_at_once, find_floor, ports, repeat=repeat, opened=opened)
    for count in (1, engines):
        with small_trees(count) as pids:
            roots = [by_pid(pid) for pid in pids]
            yield compared("read", read_at_once, read_floor, roots, repeat=repeat, opened=opened)
    for count in connect:
        with serving(count) as ports:
            yield compared("connect", connect_at_once, connect_floor, ports, repeat=repeat, opened=opened)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--connect", type=int, nargs="*", default=[])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    given = parser.parse_args()
    for row in measure(engines=given.engines, repeat=given.repeat, connect=given.connect):
        if given.json:
            print(json.dumps(row), flush=True)
        else:
            print("{what} of {count}: {ms} ms, floor {floor_ms} ms, ratio {ratio};".format(**row), end=" ")
            print("files of /proc {files}, floor {floor_files}".format(**row), flush=True)


if __name__ == "__main__":
    main()
