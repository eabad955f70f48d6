"""Of several processes that listen on one port of this host, those count that a URL's host reaches."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Any

import pytest
import uvicorn

from lifecycle import Process
from lifecycle.nodes import listeners
from lifecycle.nodes.address import parse
from lifecycle.nodes.agent import Agent, application
from lifecycle.nodes.listeners import Listener, reached
from lifecycle.nodes.locate import find_processes
from lifecycle.nodes.processes import by_pid, is_local, node_name
from lifecycle.nodes.this_host import ThisHost

LISTEN = """
import socket, sys
with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET) as listening:
    listening.bind((sys.argv[1], int(sys.argv[2])))
    listening.listen()
    print(listening.getsockname()[1], flush=True)
    sys.stdin.read()
"""

Listening = Callable[[str, int], tuple[int, Process]]


@pytest.fixture
def listening() -> Iterator[Listening]:
    """Starts processes that listen at an address, on a port of their own choice where 0 is given."""
    with ExitStack() as stack:

        def start(address: str, port: int = 0) -> tuple[int, Process]:
            command = [sys.executable, "-c", LISTEN, address, str(port)]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(child.communicate, timeout=10)
            assert child.stdout is not None
            return int(child.stdout.readline()), by_pid(child.pid)

        yield start


async def found(host: str, port: int, options: str = "") -> Any:
    return await find_processes(parse(f"loopback://{host}:{port}{options}"), deadline_s=10)


async def reached_on_this_host(host: str, port: int) -> Any:
    return await ThisHost().find(port=port, host=host, deadline_s=10)


async def test_a_listener_at_another_address_is_not_the_engine(listening: Listening) -> None:
    port, engine = listening("127.0.0.1", 0)
    _, other = listening("127.0.0.2", port)
    assert await found("127.0.0.1", port) == (engine,)
    assert await found("localhost", port) == (engine,)
    assert await found("0.0.0.0", port) == (engine,)
    assert await reached_on_this_host("127.0.0.2", port) == (other,)
    assert await reached_on_this_host("127.0.0.3", port) == ()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
async def test_one_that_listens_at_every_address_is_reached_by_each(listening: Listening, host: str) -> None:
    port, engine = listening("0.0.0.0", 0)
    assert await reached_on_this_host(host, port) == (engine,)


async def test_one_that_listens_for_ipv6_is_reached_by_ipv4_too(listening: Listening) -> None:
    port, engine = listening("::", 0)
    assert await found("127.0.0.1", port) == (engine,)
    assert await found("[::1]", port) == (engine,)


async def test_an_ipv4_address_in_an_ipv6_one_is_that_address(listening: Listening) -> None:
    port, engine = listening("::ffff:127.0.0.1", 0)
    listening("127.0.0.2", port)
    assert await found("127.0.0.1", port) == (engine,)


def listener(address: str, pid: int) -> Listener:
    found = ip_address(address)
    return Listener(found, pid)


@pytest.mark.parametrize(
    ("host", "pids"),
    [
        ("127.0.0.1", {1}),  # the socket of this address, not that of the rest
        ("127.0.0.3", {2, 3}),
        ("::1", {3}),  # a socket of every IPv4 address gets no IPv6
        ("localhost", {1}),
        (None, {1, 2, 3}),
        ("192.0.2.1", {1, 2, 3}),  # no address of this host: only the port tells
        ("no-such-name.invalid", {1, 2, 3}),
    ],
)
def test_who_is_reached(host: str | None, pids: set[int]) -> None:
    listening = [listener("127.0.0.1", 1), listener("0.0.0.0", 2), listener("::", 3)]
    assert reached(listening, host) == pids


def test_the_name_of_this_host_means_what_it_resolves_to(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved: list[str] = []

    def resolve(host: str, *_: Any, **__: Any) -> list[Any]:
        resolved.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]

    monkeypatch.setattr(listeners.socket, "getaddrinfo", resolve)
    assert reached([listener("127.0.1.1", 1), listener("127.0.0.1", 2)], node_name()) == {1}
    assert resolved == [node_name()]


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.0.0.2", False), ("::1", True), ("localhost", True), ("192.0.2.1", False)],
)
def test_of_the_loopback_network_one_address_is_this_host(host: str, local: bool) -> None:
    assert is_local(host) is local


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an agent in a thread of this process."""
    monkeypatch.setenv("LIFECYCLE_AGENT_TOKEN", "s3cret")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        app = application(Agent(threshold_gib=1.0, version="1"), "s3cret")
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        yield f"127.0.0.1:{taken.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


async def test_an_agent_is_asked_for_the_address_too(listening: Listening, agent: str) -> None:
    port, engine = listening("127.0.0.1", 0)
    listening("127.0.0.2", port)
    (there,) = await found("127.0.0.1", port, f"?agent={agent}")
    assert there.pid == engine.pid
    both = await found("192.0.2.1", port, f"?agent={agent}")
    assert len(both) == 2, "an address that its node does not have tells nothing there"
