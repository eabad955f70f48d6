"""The agent of another node: its answers, the token and protocol it asks for, and the threshold that reaches it."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import ConfigurationError, Engine, Policy, Process, Unmeasurable
from lifecycle.cli import agent
from lifecycle.core.readings import Reading
from lifecycle.fleet.registry import adapter_for
from lifecycle.launch.miles import forwarded
from lifecycle.nodes import remote
from lifecycle.nodes.address import parse
from lifecycle.nodes.agent_protocol import PROTOCOL
from lifecycle.nodes.processes import by_pid
from lifecycle.nodes.remote import TOKEN, RemoteNode
from lifecycle.settings.schema import Settings

pytestmark = pytest.mark.usefixtures("bare_environment")


@pytest.fixture
def start_agent() -> Iterator[Callable[..., str]]:
    """Starts an agent of its own process; ends it after the test. Returns its address."""
    with ExitStack() as stack:
        yield lambda *arguments, **environ: _start(stack, {TOKEN: "s3cret", **environ}, *arguments)


def _start(stack: ExitStack, environ: dict[str, str], *arguments: str) -> str:
    code = "import typer; from lifecycle.cli import agent; app = typer.Typer(); agent.register(app); app()"
    command = [sys.executable, "-c", code, "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environ})
    for end in (process.stdout.close, process.stderr.close, lambda: process.wait(10), process.terminate):
        stack.callback(end)
    return str(json.loads(process.stdout.readline())["agent"])


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """One agent for all that only ask it."""
    with ExitStack() as stack:
        yield _start(stack, {TOKEN: "s3cret"})


@pytest.fixture
def engine() -> Iterator[LoopbackProcess]:
    with LoopbackProcess.start(weights_mib=64, kv_mib=64) as process:
        yield process


async def test_the_threshold_reaches_the_agent_by_environment_argument_and_question(start_agent: Any) -> None:
    environ = Settings(residual_threshold_gib=1.75).environment()
    assert environ.items() >= forwarded(1.75).items()
    address = start_agent(**environ)
    about = await RemoteNode(address, token="s3cret").about(deadline_s=10)
    assert about["threshold_gib"] == 1.75
    process = (by_pid(os.getpid()),)
    node = RemoteNode(address, token="s3cret", threshold_gib=0.25)
    assert isinstance(await node.read(process, kind="cpu", scope="process", deadline_s=10), Reading)
    assert (await node.about(deadline_s=10))["threshold_gib"] == 0.25
    other = start_agent("--threshold-gib", "0.5", **environ)
    assert (await RemoteNode(other, token="s3cret").about(deadline_s=10))["threshold_gib"] == 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0, -1, "3GB", ""])
async def test_a_threshold_that_means_nothing_does_not_arrive(address: str, value: Any) -> None:
    before = (await RemoteNode(address, token="s3cret").about(deadline_s=10))["threshold_gib"]
    node = RemoteNode(address, token="s3cret", threshold_gib=value)
    refused = await node.read([by_pid(os.getpid())], kind="cpu", scope="process", deadline_s=10)
    assert isinstance(refused, Unmeasurable)
    assert f"threshold_gib must be a finite number > 0, got {value!r}" in refused.reason
    assert (await node.about(deadline_s=10))["threshold_gib"] == before


async def test_an_engine_measured_through_its_agent(
    monkeypatch: pytest.MonkeyPatch, start_agent: Any, engine: LoopbackProcess
) -> None:
    address = start_agent()
    monkeypatch.setenv(TOKEN, "s3cret")
    policy = Policy(residual_threshold_gib=0.25)
    adapter = adapter_for(parse(f"loopback://127.0.0.1:{engine.port}?agent={address}"))
    driven = Engine(adapter, policy=policy)
    try:
        await driven.connect()
        (process,) = await adapter.processes()
        assert (process.pid, process.agent) == (engine.pid, address)
        assert (await RemoteNode(address).about(deadline_s=10))["threshold_gib"] == 0.25, "by the probe"
        await driven.pause()
        await driven.drain()
        released = await driven.release(weights=_pushed())
        assert released.returned_bytes >= 0.9 * (128 << 20)
        engine.kill()
        assert str(await driven.verify()) == "gone", "the agent reports that the process ended"
    finally:
        await driven.aclose()


def _pushed() -> Any:
    from lifecycle import Pushed

    return Pushed(lambda engines: None, "v2")  # type: ignore[arg-type, return-value]


MINE = [Process("here", os.getpid(), 0.0)]


async def test_an_agent_with_another_token(address: str) -> None:
    verdict = await RemoteNode(address, token="guess").read(MINE, kind="cpu", scope="process", deadline_s=10)
    assert isinstance(verdict, Unmeasurable)
    assert "refuses the token" in verdict.reason
    assert TOKEN in verdict.reason


async def test_an_agent_of_another_version(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(remote, "PROTOCOL", 99)
    verdict = await RemoteNode(address, token="s3cret").hook_mode(MINE, deadline_s=10)
    assert isinstance(verdict, Unmeasurable)
    assert f"speaks protocol {PROTOCOL}" in verdict.reason
    assert "this is 99" in verdict.reason


async def test_no_agent_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    verdict = await RemoteNode(address).free_memory(["host:x"], MINE, need_bytes=1, deadline_s=5)
    assert isinstance(verdict, Unmeasurable)
    assert "lifecycle agent" in verdict.reason
    assert await RemoteNode(address).any_alive(MINE, deadline_s=5) is None


async def test_an_agent_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        verdict = await RemoteNode(address).find(port=1, deadline_s=0.3)
    assert "no answer in 0.3 s" in verdict.reason


@pytest.mark.parametrize(
    "answer",
    [
        {"alive": None},
        {"alive": "no"},
        {"alive": 0},
        {"processes": [{"pid": 1e400, "start_time": 1}], "devices": [], "verdict": []},
        {"processes": [{"pid": 7, "start_time": float("nan")}], "devices": 3, "verdict": {}},
        {"processes": [3], "devices": {"a": float("inf")}, "verdict": "x", "holders": [], "probe": "", "whole": {}},
        {"unmeasurable": [[]] * 200_000},
        {"deep": "["},
    ],
)
async def test_an_agent_with_odd_answers_has_measured_nothing(answer: Any) -> None:
    async def replies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        common = {"protocol": PROTOCOL, "version": "1", "node": "n"}
        deep = b"[" * 50_000 if answer.get("deep") else b""
        body = deep or json.dumps({**common, **answer}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await reader.read()  # until the client has closed
        writer.close()

    server = await asyncio.start_server(replies, "127.0.0.1", 0)
    node = RemoteNode(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", token="t")
    roots = (Process("n", 1, 1.0),)
    async with server:
        assert await node.any_alive(roots, deadline_s=5) is None
        for question in (
            node.find(port=1, deadline_s=5),
            node.read(roots, kind="cpu", scope="process", deadline_s=5),
            node.hook_mode(roots, deadline_s=5),
            node.process_env(roots, deadline_s=5),
            node.free_memory(["a"], roots, need_bytes=1, deadline_s=5),
        ):
            assert isinstance(await question, Unmeasurable)


async def test_an_agent_that_closes_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closing:
        address = f"127.0.0.1:{closing.getsockname()[1]}"

        def read_and_close() -> None:
            connection = closing.accept()[0]
            connection.recv(1 << 16)
            connection.close()

        thread = threading.Thread(target=read_and_close)
        thread.start()
        verdict = await RemoteNode(address).find(port=1, deadline_s=5)
        thread.join(10)
    assert isinstance(verdict, Unmeasurable)
    assert "cannot be reached" in verdict.reason


async def test_the_agent_says_whether_a_reading_is_over_the_threshold(address: str) -> None:
    for threshold_gib, over in ((0.000_001, True), (1000.0, False)):
        body = {"processes": [{"pid": os.getpid(), "start_time": by_pid(os.getpid()).start_time}]}
        question = {**body, "kind": "cpu", "scope": "process", "threshold_gib": threshold_gib}
        answer = await RemoteNode(address, token="s3cret")._ask("residual", question, dict, 10)
        assert (answer["over_threshold"], answer["threshold_gib"]) == (over, threshold_gib)


async def test_what_listens_is_no_agent(engine: LoopbackProcess) -> None:
    verdict = await RemoteNode(f"127.0.0.1:{engine.port}").about(deadline_s=5)
    assert "is no lifecycle agent" in verdict.reason


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("find", {"pid": 1 << 22}, "there is no process 4194304"),
        ("find", {"port": 0}, "port must be a number > 0"),
        ("find", {"port": "x"}, "port must be a number > 0"),
        ("residual", {"processes": 1}, "processes must be a list"),
        ("residual", {"processes": [{"pid": "a"}]}, "a process is {pid, start_time}"),
        ("residual", {"processes": [], "kind": "tpu"}, "kind must be one of cuda, cpu"),
        ("hook_mode", {"processes": [], "deadline_s": -1}, "deadline_s must be a number > 0"),
        ("dance", {}, "no question 'dance'"),
    ],
)
async def test_questions_that_mean_nothing(address: str, name: str, body: Any, said: str) -> None:
    answer = await RemoteNode(address, token="s3cret")._ask(name, body, dict, 10)
    assert isinstance(answer, Unmeasurable)
    assert said in answer.reason


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"[" * 100_000, "nested too deep"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', "at most 1048576 bytes"),
        (b"{", "Expecting property name"),
        (b"[1]", "a JSON object is wanted"),
    ],
    ids=["deep", "large", "cut", "list"],
)
def test_a_body_that_is_no_question(address: str, raw: bytes, said: str) -> None:
    host, port = address.rsplit(":", 1)
    connection = http.client.HTTPConnection(host.rpartition("/")[2], int(port), timeout=10)
    connection.request("POST", "/v1/about", raw, {"Authorization": "Bearer s3cret"})
    reply = connection.getresponse()
    body = reply.read().decode()
    connection.close()
    assert reply.status == 400
    assert said in body


async def test_a_pid_that_is_not_there_is_refused_at_connect(
    monkeypatch: pytest.MonkeyPatch, address: str, engine: LoopbackProcess
) -> None:
    monkeypatch.setenv(TOKEN, "s3cret")
    adapter = adapter_for(parse(f"loopback://127.0.0.1:{engine.port}?pid=4194304&agent={address}"))
    with pytest.raises(ConfigurationError, match="there is no process 4194304"):
        await adapter.connect(deadline_s=10)
    await adapter.aclose()


@pytest.mark.parametrize(
    ("what", "says"),
    [("token", "refuses the token"), ("version", "speaks protocol"), ("no agent", "cannot be reached")],
)
async def test_an_engine_whose_agent_does_not_help_is_refused_at_connect(
    monkeypatch: pytest.MonkeyPatch, address: str, engine: LoopbackProcess, what: str, says: str
) -> None:
    monkeypatch.setenv(TOKEN, "guess" if what == "token" else "s3cret")
    if what == "version":
        monkeypatch.setattr(remote, "PROTOCOL", 99)
    if what == "no agent":
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
    adapter = adapter_for(parse(f"loopback://127.0.0.1:{engine.port}?agent={address}"))
    with pytest.raises(ConfigurationError, match=says):
        await adapter.connect(deadline_s=10)
    await adapter.aclose()


def test_an_agent_does_not_start_without_a_token_or_a_port(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    with pytest.raises(ConfigurationError, match=TOKEN):
        run(agent)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setenv(TOKEN, "")
        with pytest.raises(ConfigurationError, match="needs a token"):  # an empty one would admit every caller
            run(agent, "--port", port)
    monkeypatch.setenv(TOKEN, "s3cret")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(ConfigurationError, match="cannot listen on"):
            run(agent, "--port", port)
