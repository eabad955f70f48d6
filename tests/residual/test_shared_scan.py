"""One scan of the sockets of a host serves all who ask at once, and nobody who asks later."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest

from lifecycle import Unmeasurable
from lifecycle.nodes.address import parse
from lifecycle.nodes.locate import find_processes
from lifecycle.nodes.processes import by_pid
from lifecycle.nodes.shared_scan import SharedScan
from lifecycle.nodes.this_host import ThisHost


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """When each scan of the sockets of this host began."""
    begun: list[float] = []
    real = psutil.net_connections

    def counted(kind: str) -> object:
        begun.append(time.monotonic())
        return real(kind)

    monkeypatch.setattr(psutil, "net_connections", counted)
    return begun


async def test_64_listeners_are_found_by_one_scan(scans: list[float]) -> None:
    with ExitStack() as stack:
        listening = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(64)]
        urls = [parse(f"loopback://127.0.0.1:{each.getsockname()[1]}") for each in listening]
        found = await asyncio.gather(*(find_processes(url, deadline_s=30) for url in urls))
    assert set(found) == {(by_pid(os.getpid()),)}
    assert len(scans) == 1


async def test_who_asks_later_has_a_later_scan(scans: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as first:
        url = parse(f"loopback://127.0.0.1:{first.getsockname()[1]}")
        assert await find_processes(url, deadline_s=30)
    assert await find_processes(url, deadline_s=30) is None
    assert len(scans) == 2


class Blocking:
    """A scan that ends when it is let go; it finds how many have begun."""

    def __init__(self) -> None:
        self.number, self.begun, self.go = 0, threading.Event(), threading.Semaphore(0)

    def __call__(self) -> int:
        self.number += 1
        number = self.number
        self.begun.set()
        assert self.go.acquire(timeout=10)
        return number


async def test_a_scan_that_had_begun_answers_no_new_question() -> None:
    blocking = Blocking()
    shared = SharedScan(blocking)
    early = [asyncio.create_task(shared.result(deadline_s=10)) for _ in range(3)]
    assert await asyncio.to_thread(blocking.begun.wait, 10)
    blocking.begun.clear()
    late = [asyncio.create_task(shared.result(deadline_s=10)) for _ in range(3)]
    assert not await asyncio.to_thread(blocking.begun.wait, 0.1), "one scan at a time"
    blocking.go.release(2)
    assert await asyncio.gather(*early) == [1, 1, 1]
    assert await asyncio.gather(*late) == [2, 2, 2]


async def test_each_has_its_own_deadline_and_a_failure_reaches_all() -> None:
    blocking = Blocking()
    shared = SharedScan(blocking)
    patient = asyncio.create_task(shared.result(deadline_s=10))
    with pytest.raises(TimeoutError):
        await shared.result(deadline_s=0.02)
    blocking.go.release()
    assert await patient == 1

    def fails() -> None:
        raise PermissionError("no /proc")

    failing = SharedScan(fails)
    found = await asyncio.gather(*(failing.result(deadline_s=5) for _ in range(2)), return_exceptions=True)
    assert [type(each) for each in found] == [PermissionError, PermissionError]


async def test_a_scan_that_takes_too_long_is_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr(psutil, "net_connections", lambda kind: [go.wait(10)][:0])
    found = await ThisHost().find(port=1, deadline_s=0.05)
    go.set()
    assert isinstance(found, Unmeasurable)
    assert "listen on port 1 took more than" in found.reason


def test_every_event_loop_has_its_own() -> None:
    shared = SharedScan(lambda: 7)
    assert [asyncio.run(shared.result(deadline_s=5)) for _ in range(2)] == [7, 7]
