"""Kept connections to the loopback engine: small answers come at once, faults drop them, and idle ones are closed."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from lifecycle.adapters.loopback.memory import HostBackup, Region
from lifecycle.adapters.loopback.options import EngineOptions
from lifecycle.adapters.loopback.server import _listen
from loopback_client import GONE, fresh, get, post


@contextmanager
def kept(engine: LoopbackProcess) -> Iterator[http.client.HTTPConnection]:
    """A connection that was used once."""
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=20)
    try:
        assert status(connection, "GET", "/ready") == 200
        yield connection
    finally:
        connection.close()


def status(connection: http.client.HTTPConnection, method: str, path: str, body: object = None) -> int:
    """The status of one more request on this connection, which is not opened anew."""
    connection.auto_open = 0 if connection.sock is not None else 1
    raw = None if body is None else json.dumps(body).encode()
    connection.request(method, path, raw, {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read()
    return response.status


async def test_accepted_sockets_send_small_packets_at_once() -> None:
    """Without it the body of an answer waits until the client's kernel acknowledges the head, some 40 ms later."""
    found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    class Accepts(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted = transport.get_extra_info("socket")
            found.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            transport.close()

    listener = _listen(EngineOptions())
    server = await asyncio.get_running_loop().create_server(Accepts, sock=listener)
    _, writer = await asyncio.open_connection(*listener.getsockname())
    assert await asyncio.wait_for(found, 5) != 0
    writer.close()
    server.close()


def test_a_dropped_call_drops_a_kept_connection() -> None:
    with fresh(allow_faults=True) as engine, kept(engine) as connection, kept(engine) as other:
        assert post(engine, "/_fault", {"pause": "lost"}).status == 200
        with pytest.raises(GONE):
            status(connection, "POST", "/pause_generation", {"mode": "retract"})
        assert get(engine, "/ready").status == 503, "it had its effect"
        assert status(other, "GET", "/ready") == 503, "and only its own connection was dropped"


@pytest.mark.slow
def test_an_idle_connection_is_closed_after_five_seconds(engine: LoopbackProcess) -> None:
    with kept(engine) as connection:
        time.sleep(3.0)
        assert status(connection, "GET", "/ready") == 200
        begun = time.monotonic()
        connection.sock.settimeout(20)
        assert connection.sock.recv(1) == b""
        assert 4.5 < time.monotonic() - begun < 8.0


def test_a_backup_has_its_memory_before_the_first_release() -> None:
    region = Region(1 << 20)
    region.bytes[:] = 7
    backup = HostBackup(region.size)
    described = os.fstat(backup._file.fileno())
    assert described.st_blocks * 512 >= region.size
    assert os.readlink(f"/proc/self/fd/{backup._file.fileno()}").startswith("/memfd:"), "it waits for no disk"
    backup.save(region)
    region.drop()
    backup.restore(region)
    assert bool((region.bytes == 7).all())
    backup._file.close()
