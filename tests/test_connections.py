"""Connections are kept, and one that its server closed is never a lost answer to a call that must not be repeated."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from counting_server import LONG, OK, CountingServer
from lifecycle.adapters import connections
from lifecycle.adapters.http import Answer, HttpClient

READ: tuple[str, bool | None] = ("GET", None)
REPEATABLE: tuple[str, bool | None] = ("POST", True)
ONCE: tuple[str, bool | None] = ("POST", None)
ANY = pytest.mark.parametrize("call", [READ, REPEATABLE, ONCE], ids=["read", "repeatable", "once"])


async def send(client: HttpClient, call: tuple[str, bool | None] = READ, path: str = "/", s: float = 5.0) -> Answer:
    method, repeatable = call
    body = {"a": 1} if method == "POST" else None
    return await client.request(method, path, deadline_s=s, repeatable=repeatable, json_body=body)


async def until(condition: Any) -> None:
    """Returns once the condition holds; fails after 5 s."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the server runs in this loop, and says nothing
            await asyncio.sleep(0.005)


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Every connection was answered so many seconds earlier than it was."""
    monkeypatch.setattr(connections, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + seconds))


async def test_a_series_of_requests_uses_one_connection() -> None:
    async with CountingServer() as server:
        client = HttpClient(server.url)
        for call in [READ, REPEATABLE, ONCE] * 5:
            assert (await send(client, call)).body == b"ok"
        assert (server.connections, len(server.seen)) == (1, 15)
        assert all(b"accept-encoding: identity\r\n" in head.lower() for head in server.heads)
        assert not any(b"cookie:" in head.lower() for head in server.heads)
        await client.aclose()


@ANY
async def test_a_connection_that_the_server_closed_is_not_used(call: tuple[str, bool | None]) -> None:
    async with CountingServer() as server:
        client = HttpClient(server.url)
        await send(client)
        server.end_idle()
        assert (await send(client, call)).ok
        assert (server.connections, len(server.seen)) == (2, 2)
        await client.aclose()


@pytest.mark.parametrize("call", [READ, REPEATABLE], ids=["read", "repeatable"])
async def test_a_repeatable_call_on_a_stale_connection_is_answered(call: tuple[str, bool | None]) -> None:
    async with CountingServer(per_connection=1) as server:
        client = HttpClient(server.url)
        await asyncio.gather(*(send(client) for _ in range(3)))
        before, kept = len(server.seen), server.connections
        assert (await send(client, call)).ok
        assert len(server.seen) == before + 2
        assert server.connections == kept + 1, "the second time it goes over a new one, and not over the next stale one"
        await client.aclose()


@pytest.mark.parametrize("spelling", ["http://127.0.0.1:{}", "HTTP://127.0.0.1:{}"])
async def test_a_call_that_must_not_be_repeated_leaves_an_idle_connection(
    monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    async with CountingServer(per_connection=1) as server:
        client, other = HttpClient(server.url), HttpClient(spelling.format(server.port))
        await send(client)
        later(monkeypatch, connections.RECENT_S + 0.1)
        assert (await send(other, ONCE)).ok
        assert (server.connections, len(server.seen)) == (2, 2)
        await client.aclose()
        await other.aclose()


async def test_a_read_uses_an_idle_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async with CountingServer() as server:
        client = HttpClient(server.url)
        await send(client)
        later(monkeypatch, 60.0)
        assert (await send(client)).ok
        assert server.connections == 1
        await client.aclose()


@pytest.mark.parametrize("path", ["/", "/drop"])
@pytest.mark.parametrize("kept", [True, False])
async def test_a_call_that_must_not_be_repeated_is_sent_once(path: str, kept: bool) -> None:
    async with CountingServer(per_connection=int(kept)) as server:
        client = HttpClient(server.url)
        if kept:
            await send(client)
        server.seen.clear()
        answer = await send(client, ONCE, path)
        assert (answer.status, answer.refused, answer.late) == (None, False, False)
        assert server.seen == [f"POST {path}"]
        await client.aclose()


@pytest.mark.parametrize("call", [READ, REPEATABLE], ids=["read", "repeatable"])
@pytest.mark.parametrize(("path", "kept", "times"), [("/drop", False, 1), ("/drop", True, 2), ("/part", True, 1)])
async def test_a_call_is_sent_again_once_and_only_where_no_byte_came(
    call: tuple[str, bool | None], path: str, kept: bool, times: int
) -> None:
    async with CountingServer() as server:
        client = HttpClient(server.url)
        if kept:
            await send(client)
        server.seen.clear()
        answer = await send(client, call, path)
        assert (answer.status, answer.refused, answer.late) == (None, False, False)
        assert answer.error.startswith("the connection broke")
        assert server.seen == [f"{call[0]} {path}"] * times
        await client.aclose()


async def test_a_new_connection_leaves_those_that_are_kept() -> None:
    async with CountingServer() as server:
        client = HttpClient(server.url)
        for _ in range(3):
            assert (await client.request("GET", "/", deadline_s=5.0, fresh=True)).ok
        assert server.connections == 3
        assert all(answer.ok for answer in await asyncio.gather(*(send(client) for _ in range(3))))
        assert (server.connections, server.ended) == (3, 0)
        await client.aclose()


async def test_what_nobody_asked_for_is_no_answer_to_the_next_request() -> None:
    async with CountingServer() as server:
        client = HttpClient(server.url)
        await send(client)
        server.writers[0].write(OK.replace(b"ok", b"no"))
        await asyncio.sleep(0.02)  # both are allowed: that the client's loop has read it, and that it has not
        assert (await send(client)).body == b"ok"
        server.writers[1].write(OK.replace(b"ok", b"no"))
        assert (await send(client)).body == b"ok"
        assert server.connections == 3
        await client.aclose()


@ANY
async def test_a_server_that_ended_refuses(call: tuple[str, bool | None]) -> None:
    async with CountingServer() as server:
        client = HttpClient(server.url)
        await send(client)
        server.stop()
        server.end_idle()
        answer = await send(client, call)
        assert (answer.status, answer.refused, answer.late) == (None, True, False)
        await client.aclose()


@pytest.mark.parametrize(("call", "refused"), [(READ, True), (REPEATABLE, False), (ONCE, False)])
async def test_a_call_that_was_sent_before_is_not_called_refused(call: tuple[str, bool | None], refused: bool) -> None:
    async with CountingServer(per_connection=1, then="stop") as server:
        client = HttpClient(server.url)
        await send(client)
        answer = await send(client, call)
        assert (answer.status, answer.refused, answer.late) == (None, refused, False)
        assert len(server.seen) == 2
        await client.aclose()


@ANY
@pytest.mark.parametrize(
    ("path", "why"),
    [("/drop", "isconnected|closed"), ("/reset", "reset by peer"), ("/part", "in the middle of its answer")],
)
async def test_a_connection_that_broke_says_how(call: tuple[str, bool | None], path: str, why: str) -> None:
    async with CountingServer() as server:
        client = HttpClient(server.url)
        assert re.search(why, (await send(client, call, path)).error)
        await client.aclose()


@pytest.mark.parametrize(("path", "size"), [("/", 2), ("/long", LONG)], ids=["with the head", "in parts"])
async def test_a_body_is_read_up_to_its_limit(path: str, size: int) -> None:
    async with CountingServer() as server:
        client = HttpClient(server.url)
        whole = await client.request("GET", path, deadline_s=5.0, limit=size)
        assert (whole.status, len(whole.body)) == (200, size)
        more = await client.request("GET", path, deadline_s=5.0, limit=size - 1)
        assert (more.status, more.body) == (None, b"")
        assert "its answer has more than" in more.error
        await client.aclose()


@ANY
@pytest.mark.parametrize("way", ["a new connection", "a kept one", "a second one"])
async def test_every_way_ends_at_the_deadline(call: tuple[str, bool | None], way: str) -> None:
    again = way == "a second one"
    async with CountingServer(per_connection=1 if again else 9, then="/hang" if again else "") as server:
        client = HttpClient(server.url)
        if way != "a new connection":
            await send(client)
        begun = time.monotonic()
        answer = await send(client, call, "/hang", 0.2)
        if again and call is ONCE:
            assert not answer.late
        else:
            assert (answer.status, answer.refused, answer.late) == (None, False, True)
            assert 0.19 < time.monotonic() - begun < 2.0
        assert await client.request("GET", "/", deadline_s=0.0) == Answer(
            None, error="no time was left to send it", refused=True, late=True
        )
        await client.aclose()


async def test_the_clients_of_a_loop_share_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions: list[aiohttp.ClientSession] = []
    made = aiohttp.ClientSession

    def session(**options: Any) -> aiohttp.ClientSession:
        sessions.append(made(**options))
        return sessions[-1]

    monkeypatch.setattr(aiohttp, "ClientSession", session)
    async with CountingServer() as one, CountingServer() as other:
        clients = [HttpClient(server.url) for server in (one, other) for _ in range(32)]
        assert all(answer.ok for answer in await asyncio.gather(*map(send, clients)))
        assert len(sessions) == 1
        for client in clients[:32]:
            await client.aclose()
        await until(lambda: one.ended == one.connections)
        assert (other.ended, sessions[0].closed) == (0, False)
        for client in clients[32:]:
            assert not sessions[0].closed
            await client.aclose()
        await until(lambda: other.ended == other.connections)
        assert sessions[0].closed
        assert (await send(clients[0])).ok, "a client may be used again"
        await clients[0].aclose()
        assert [each.closed for each in sessions] == [True, True]


async def test_a_client_that_was_never_closed_holds_nothing_open() -> None:
    async with CountingServer() as server:
        client, forgotten = HttpClient(server.url), HttpClient(server.url)
        await send(client)
        await send(forgotten)
        del forgotten
        await client.aclose()
        await until(lambda: server.ended == server.connections)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("kept", [True, False])
async def test_closing_a_client_ends_its_request(last: bool, kept: bool) -> None:
    async with CountingServer() as server, CountingServer() as other:
        client, stays = HttpClient(server.url), HttpClient(other.url)
        if not last:
            await send(stays)
        if kept:
            await send(client)
        server.seen.clear()
        waiting = asyncio.create_task(send(client, path="/hang", s=30.0))
        await until(lambda: server.seen)
        await client.aclose()
        assert (await asyncio.wait_for(waiting, 5)).error.startswith("the connection broke")
        assert (server.seen, server.connections) == (["GET /hang"], 1)
        await stays.aclose()


async def test_closing_a_client_ends_its_request_on_a_connection_of_another_spelling() -> None:
    async with CountingServer() as server:
        other, client = HttpClient(server.url), HttpClient(server.url.replace("http", "HTTP"))
        await send(other)
        waiting = asyncio.create_task(send(client, path="/hang", s=30.0))
        await until(lambda: server.seen == ["GET /", "GET /hang"])
        assert server.connections == 1
        await client.aclose()
        assert (await asyncio.wait_for(waiting, 5)).error.startswith("the connection broke")
        await other.aclose()


async def test_the_end_of_a_loop_ends_its_requests() -> None:
    async with CountingServer() as server:
        client = HttpClient(server.url)
        await send(client)
        server.seen.clear()
        waiting = asyncio.create_task(send(client, path="/hang", s=30.0))
        await until(lambda: server.seen)
        await connections._SHARED[asyncio.get_running_loop()]._end.aclose()
        assert (await asyncio.wait_for(waiting, 5)).error.startswith("the connection broke")
        assert server.seen == ["GET /hang"]


SCRIPT = """
import asyncio, gc, os, sys, threading
from counting_server import CountingServer
from lifecycle.adapters import connections
from lifecycle.adapters.http import HttpClient

servers, loop = [], asyncio.new_event_loop()
async def serve():
    servers.append(await CountingServer().__aenter__())
threading.Thread(target=loop.run_forever, daemon=True).start()
asyncio.run_coroutine_threadsafe(serve(), loop).result()
server, client = servers[0], HttpClient(servers[0].url)
async def get():
    answer = await client.request("GET", "/", deadline_s=10.0)
    assert answer.ok, answer
"""

ENDS = {
    "asyncio.run": "asyncio.run(get())\nasyncio.run(get())",
    "a loop closed by hand": """
    mine = asyncio.new_event_loop()
    mine.run_until_complete(get())
    mine.close()
    asyncio.run(get())
    assert not connections._SHARED
    """,
    "a loop that is never closed": """
    mine = asyncio.new_event_loop()
    mine.run_until_complete(get())
    """,
    "another thread's loop beside it": """
    mine = asyncio.new_event_loop()
    mine.run_until_complete(get())
    asyncio.run(get())
    mine.run_until_complete(get())
    assert server.connections == 2, server.connections
    mine.run_until_complete(client.aclose())
    mine.close()
    """,
    "a fork": """
    mine = asyncio.new_event_loop()
    runs = threading.Thread(target=mine.run_forever, daemon=True)
    runs.start()
    asyncio.run_coroutine_threadsafe(get(), mine).result()
    child = os.fork()
    if child == 0:
        gc.collect()
        sys.exit(0)
    os.waitpid(child, 0)
    asyncio.run_coroutine_threadsafe(get(), mine).result()
    assert server.connections == 1, server.connections
    asyncio.run_coroutine_threadsafe(client.aclose(), mine).result()
    mine.call_soon_threadsafe(mine.stop)
    runs.join()
    mine.close()
    """,
}


@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_said_of_a_session_whose_loop_ended(end: str) -> None:
    script = SCRIPT + textwrap.dedent(ENDS[end]) + "\ngc.collect()\n"
    tests = sys.modules[CountingServer.__module__].__file__
    assert tests is not None
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": tests.rpartition("/")[0]},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_asyncio_run_leaves_no_connection_open() -> None:
    """Also with every warning an error, as in this test's process, nothing is found unclosed."""

    async def ask(client: HttpClient) -> int:
        async with CountingServer() as server:
            client.base_url = server.url
            await send(client)
        return server.connections

    client = HttpClient("http://127.0.0.1:1")
    assert [asyncio.run(ask(client)) for _ in range(3)] == [1, 1, 1]
    assert not connections._SHARED
