"""The processes of an engine are looked for while it answers, and once for all that are connected at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from lifecycle.adapters import server_processes
from lifecycle.adapters.http import Answer
from lifecycle.adapters.loopback import LoopbackProcess
from lifecycle.adapters.sglang import SGLangAdapter

from lifecycle import ConfigurationError, Fleet, Policy
from lifecycle.core.readings import Process
from lifecycle.nodes import this_host
from lifecycle.nodes.address import parse
from lifecycle.nodes.processes import by_pid, node_name

Start = Callable[..., LoopbackProcess]
Found = tuple[Process, ...] | None


def adapter_of(engine: LoopbackProcess, options: str = "") -> SGLangAdapter:
    return SGLangAdapter(parse(engine.url.replace("http://", "sglang://") + options))


@pytest.fixture
def finds(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What looks for processes finds these, one after another; the result is when it looked."""

    def scripted(*found: Found) -> list[str]:
        looked: list[str] = []

        async def find(address: object, *, deadline_s: float) -> Found:
            looked.append("processes")
            return found[min(len(looked), len(found)) - 1]

        monkeypatch.setattr(server_processes, "find_processes", find)
        return looked

    return scripted


async def test_all_that_are_connected_at_once_share_one_scan(
    start: Start, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines, scans, scan = [start() for _ in range(3)], list[tuple[int, ...]](), this_host.listening_roots

    def counted(ports: Iterable[int]) -> Any:
        scans.append(tuple(ports))
        return scan(scans[-1])

    monkeypatch.setattr(this_host, "listening_roots", counted)
    urls = [engine.url.replace("http://", "loopback://") for engine in engines]
    async with Fleet.connect(urls, policy=policy) as fleet:
        pids = [process.pid for engine in fleet for process in await engine.adapter.processes() or ()]
    assert pids == [engine.pid for engine in engines]
    assert [len(ports) for ports in scans] == [3]


async def test_one_that_ended_before_the_answer_is_not_the_one_that_answered(
    start: Start, finds: Callable[..., list[str]]
) -> None:
    engine, ended = start(), Process(node_name(), 1 << 22, 1.0)
    looked = finds((ended,), (by_pid(engine.pid),))
    adapter = adapter_of(engine)
    await adapter.connect(deadline_s=10)
    assert await adapter.processes() == (by_pid(engine.pid),)
    assert len(looked) == 2
    await adapter.aclose()


async def test_one_that_was_not_there_yet_is_looked_for_again(start: Start, finds: Callable[..., list[str]]) -> None:
    engine = start()
    finds(None, (by_pid(engine.pid),))
    adapter = adapter_of(engine)
    await adapter.connect(deadline_s=10)
    assert await adapter.processes() == (by_pid(engine.pid),)
    await adapter.aclose()


async def test_what_an_agent_finds_is_asked_for_after_the_answer(
    start: Start, finds: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its processes nobody here can tell whether they lived through the answer."""
    engine = start()
    order, adapter = finds((by_pid(engine.pid),)), adapter_of(engine, "?agent=127.0.0.1:1")
    request = adapter._http.request

    async def noted(method: str, path: str, **how: Any) -> Answer:
        answer = await request(method, path, **how)
        order.append(path)
        return answer

    monkeypatch.setattr(adapter._http, "request", noted)
    await adapter.connect(deadline_s=10)
    assert order == ["/server_info", "/abort_request", "/model_info", "processes"]
    await adapter.aclose()


async def test_a_scan_that_fails_says_so_once_the_server_has_answered(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, looked = start(), list[int]()

    async def fails(address: object, *, deadline_s: float) -> Found:
        looked.append(1)
        raise PermissionError("no")

    monkeypatch.setattr(server_processes, "find_processes", fails)
    adapter = adapter_of(engine)
    with pytest.raises(PermissionError):
        await adapter.connect(deadline_s=10)
    assert len(looked) == 2
    await adapter.aclose()


async def test_a_scan_that_takes_long_leaves_time_to_check_the_key(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(api_key="user", admin_api_key="admin")

    async def slow(address: object, *, deadline_s: float) -> Found:
        await asyncio.sleep(deadline_s)
        return None

    monkeypatch.setattr(server_processes, "find_processes", slow)
    adapter = adapter_of(engine, "?api_key=user")
    with pytest.raises(ConfigurationError, match="control endpoints refuse"):
        await adapter.connect(deadline_s=2.0)
    await adapter.aclose()
