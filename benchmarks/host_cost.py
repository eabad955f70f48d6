"""What the library asks of a host: files of /proc opened and seconds, beside the least that answers the same.

    python benchmarks/host_cost.py [--engines 64] [--repeat 5] [--json]

`find` looks up the listeners of all ports at once; its floor is one scan of the sockets. `read` weighs all trees at
once; its floor is one reading of the process table, and of each process's rollup and command line. Way and floor
alternate in one run, and the figure that is compared is the ratio of their medians. What a connect costs is measured by
`part_hosts.py`.

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
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil

from lifecycle.core.readings import Process, Reading
from lifecycle.nodes.processes import by_pid
from lifecycle.nodes.this_host import ThisHost

DEADLINE_S = 300.0

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


def measure(*, engines: int, repeat: int) -> Iterator[dict[str, Any]]:
    """Yields a row for each way: what, count, ms, floor_ms, ratio, files, floor_files."""
    opened = Opened()
    with listening(engines) as ports:
        yield compared("find", find_at_once, find_floor, ports, repeat=repeat, opened=opened)
    for count in (1, engines):
        with small_trees(count) as pids:
            roots = [by_pid(pid) for pid in pids]
            yield compared("read", read_at_once, read_floor, roots, repeat=repeat, opened=opened)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    given = parser.parse_args()
    for row in measure(engines=given.engines, repeat=given.repeat):
        if given.json:
            print(json.dumps(row), flush=True)
        else:
            print("{what} of {count}: {ms} ms, floor {floor_ms} ms, ratio {ratio};".format(**row), end=" ")
            print("files of /proc {files}, floor {floor_files}".format(**row), flush=True)


if __name__ == "__main__":
    main()
