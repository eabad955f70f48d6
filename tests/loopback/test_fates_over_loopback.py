"""Sixteen clients of a loopback engine account for every request of a pause, and the engine's account is the same.

Of SGLang's streams less is told than of its calls: what it counts as open is true only some seconds after they ended.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from lifecycle.adapters.exposition import samples, total
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import BaseObserver, Engine, Fleet, FromDisk, OperationFailed, Policy, State, Transition
from lifecycle.core.observer import Observers
from lifecycle.core.requests import NOT_KNOWN, RequestFates
from lifecycle.fleet.routing import Routing
from lifecycle.testing.router import ScriptedRouter

CLIENTS, TAG_MIB = 16, 64
#: Seconds of a step: of `LONG` tokens no request ends by itself while the test looks.
STEP_S, SHORT, LONG = "0.01", 40, 400

pytestmark = pytest.mark.slow

POLICY = Policy(residual_threshold_gib=0.2)


class Clients:
    """Streams, each of which ends as `finished`, `aborted`, `refused` or lost."""

    def __init__(self, session: aiohttp.ClientSession, process: LoopbackProcess, dialect: str) -> None:
        self._session, self._process, self._dialect = session, process, dialect
        self.ends: Counter[str] = Counter()
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, count: int, tokens: int) -> None:
        self._tasks += [asyncio.create_task(self._stream(number, tokens)) for number in range(count)]

    async def until(self, what: Any, deadline_s: float = 60.0) -> None:
        async with asyncio.timeout(deadline_s):
            while not what():  # noqa: ASYNC110 - other processes decide it
                await asyncio.sleep(0.01)

    async def all_end(self) -> None:
        await asyncio.wait_for(asyncio.gather(*self._tasks), 120)

    async def leave(self) -> None:
        """Every client closes its connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def weights(self) -> Path:
        """The checkpoint with which the engine was started."""
        return self._process.weights

    def kill(self) -> None:
        """No process of the engine is left."""
        self._process.kill()

    async def _stream(self, number: int, tokens: int) -> None:
        if self._dialect == "vllm":
            path, body = "/v1/completions", {"prompt": f"{number}:", "max_tokens": tokens, "stream": True}
            body |= {"temperature": 0, "ignore_eos": True}
        else:
            path, body = "/generate", {"text": f"{number}:", "stream": self._dialect == "sglang streams"}
            body |= {"sampling_params": {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}}
        async with self._session.post(self._process.url + path, json=body) as response:
            if response.status == 503:
                self.ends["refused"] += 1
                return
            reason = None
            async for line in response.content:
                if line.startswith((b"data: {", b"{")):
                    reason = self._reason(json.loads(line.removeprefix(b"data: "))) or reason
        self.ends["aborted" if reason == "abort" else "finished" if reason == "length" else f"lost: {reason}"] += 1

    def _reason(self, event: dict[str, Any]) -> str | None:
        if self._dialect == "vllm":
            return next((choice["finish_reason"] for choice in event.get("choices", ())), None)
        finish = event["meta_info"]["finish_reason"]
        return None if finish is None else str(finish["type"])


@asynccontextmanager
async def driven(dialect: str, *arguments: str) -> AsyncIterator[tuple[Engine, Clients]]:
    """An engine of this dialect that is connected to, and its clients; no router sends requests to it."""
    flags = ["--enable-server-load-tracking"] if dialect == "vllm" else ["--enable-metrics"]
    flags += ["--max-running-requests", str(CLIENTS), "--step-delay-s", STEP_S, *arguments]
    how = {"dialect": "vllm"} if dialect == "vllm" else {}
    process = await LoopbackProcess.astart(weights_mib=TAG_MIB, kv_mib=TAG_MIB, arguments=flags, **how)
    sizes = f"?sizes=weights:{TAG_MIB << 20},kv_cache:{TAG_MIB << 20}"
    url = f"vllm://127.0.0.1:{process.port}{sizes}" if dialect == "vllm" else f"loopback://127.0.0.1:{process.port}"
    connector = aiohttp.TCPConnector(limit=0)
    try:
        async with (
            Fleet.connect([url], policy=POLICY) as fleet,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None), connector=connector) as session,
        ):
            yield fleet.engines[0], Clients(session, process, dialect)
    finally:
        process.kill()


DIALECTS = pytest.mark.parametrize("dialect", ["sglang calls", "sglang streams", "vllm"])


def told(dialect: str, fates: RequestFates, *, settled: bool = True) -> RequestFates:
    """What of these fates is known of such requests; `settled`: no stream has ended for some seconds."""
    if dialect != "sglang streams":
        return fates
    return replace(fates, ended=None, aborted=None, kept=fates.kept if settled else None)


@DIALECTS
async def test_all_that_an_abort_ends_is_told(dialect: str) -> None:
    """Two that come while it is closed wait for it, and are told as kept."""
    async with driven(dialect) as (engine, clients):
        clients.begin(CLIENTS, LONG)
        await _all_run(engine, dialect, CLIENTS)
        await engine.pause("abort")
        await clients.until(lambda: clients.ends.total() == CLIENTS)
        drained = await engine.drain()
        assert clients.ends == Counter(aborted=CLIENTS)
        aborted = RequestFates(CLIENTS, 0, CLIENTS, 0, 0, "engine")
        assert drained.requests == told(dialect, aborted, settled=False)
        clients.begin(2, SHORT)
        await _is_told(engine, open_now=2)
        resumed = await engine.resume()
        await clients.all_end()
    assert resumed.requests == told(dialect, replace(aborted, kept=2))
    assert clients.ends == Counter(aborted=CLIENTS, finished=2)


@DIALECTS
async def test_all_that_finishes_while_it_is_waited_for_is_told(dialect: str) -> None:
    """SGLang's counters do not tell what finished from what was aborted where both may be: of none it says so."""
    async with driven(dialect) as (engine, clients):
        await Routing(ScriptedRouter()).close([engine])
        engine._session.has_router = True
        clients.begin(CLIENTS, LONG // 2)
        await _all_run(engine, dialect, CLIENTS)
        await engine.pause("wait", deadline_s=120)
        await clients.all_end()
        drained = await engine.drain()
        await _is_told(engine, open_now=0)
        resumed = await engine.resume()
    assert clients.ends == Counter(finished=CLIENTS)
    fates = RequestFates(CLIENTS, CLIENTS, 0 if dialect == "vllm" else None, 0, 0, "engine")
    assert drained.requests == told(dialect, fates, settled=False)
    assert resumed.requests == told(dialect, fates)


@DIALECTS
async def test_all_that_is_kept_is_told_and_ends_afterwards(dialect: str) -> None:
    async with driven(dialect) as (engine, clients):
        clients.begin(CLIENTS, LONG)
        await _all_run(engine, dialect, CLIENTS)
        await engine.pause("keep")
        drained = await engine.drain()
        released = await engine.release(tags=None, weights=FromDisk(str(clients.weights), "again"))
        assert released.requests is None
        await engine.restore_weights()
        await engine.update_weights(FromDisk(str(clients.weights), "again"))
        await engine.restore_kv()
        await _is_told(engine, open_now=CLIENTS)
        assert not clients.ends
        resumed = await engine.resume()
        await clients.all_end()
    kept = RequestFates(0, 0, 0, CLIENTS, 0, "engine")
    assert drained.requests == told(dialect, kept, settled=False)
    # The wake of all tags lets a vLLM run for a moment: a request may get a token then, and none ended here.
    assert resumed.requests == told(dialect, kept)
    assert clients.ends == Counter(finished=CLIENTS)


async def test_what_finished_and_what_was_aborted_are_told_apart() -> None:
    """Of a vLLM: four end by themselves while it waits, and it is then told to abort the others."""
    async with driven("vllm") as (engine, clients):
        clients.begin(4, LONG // 2)
        clients.begin(CLIENTS - 4, 2 * LONG)
        await _all_run(engine, "vllm", CLIENTS)
        await engine.pause("wait")
        await clients.until(lambda: clients.ends["finished"] == 4)
        await engine.pause("abort")
        drained = await engine.drain()
        await clients.all_end()
    assert clients.ends == Counter(finished=4, aborted=CLIENTS - 4)
    assert drained.requests == RequestFates(CLIENTS, 4, CLIENTS - 4, 0, 0, "engine")


async def test_what_a_full_queue_refuses_is_told() -> None:
    async with driven("vllm", "--max-num-queued-reqs", str(CLIENTS)) as (engine, clients):
        clients.begin(CLIENTS, LONG)
        await _all_run(engine, "vllm", CLIENTS)
        await engine.pause("keep")
        await engine.drain()
        clients.begin(3, SHORT)
        await clients.until(lambda: clients.ends["refused"] == 3)
        resumed = await engine.resume()
        await clients.all_end()
    assert resumed.requests == RequestFates(0, 0, 0, CLIENTS, 3, "engine")
    assert clients.ends == Counter(refused=3, finished=CLIENTS)


async def test_kept_requests_whose_clients_leave_are_kept_no_more() -> None:
    """Nobody was told anything, so that nothing was aborted with partial output."""
    async with driven("vllm") as (engine, clients):
        clients.begin(CLIENTS, LONG)
        await _all_run(engine, "vllm", CLIENTS)
        await engine.pause("keep")
        assert (await engine.drain()).requests == RequestFates(0, 0, 0, CLIENTS, 0, "engine")
        await clients.leave()
        await _is_told(engine, open_now=0)
        assert (await engine.resume()).requests == RequestFates(0, 0, 0, 0, 0, "engine")


@pytest.mark.parametrize("dialect", ["sglang calls", "vllm"])
async def test_of_an_engine_that_died_nothing_is_told(dialect: str) -> None:
    async with driven(dialect) as (engine, clients):
        clients.begin(2, LONG)
        await _all_run(engine, dialect, 2)
        edges: list[Transition] = []
        engine._session.observers = Observers([Hears(edges)])
        await engine.pause("keep")
        clients.kill()
        with pytest.raises(OperationFailed):
            await engine.drain(deadline_s=10)
        await engine.recover()
        assert engine.state is State.GONE
        assert [edge.requests for edge in edges if edge.requests is not None] == [NOT_KNOWN]
        await clients.leave()


async def test_an_sglang_without_metrics_tells_nothing_and_is_asked_nothing() -> None:
    process = await LoopbackProcess.astart(weights_mib=16, kv_mib=64)
    try:
        async with Fleet.connect([f"loopback://127.0.0.1:{process.port}"], policy=POLICY) as fleet:
            [engine] = fleet.engines
            await engine.pause()
            assert (await engine.drain()).requests == NOT_KNOWN
            assert (await engine.resume()).requests == NOT_KNOWN
    finally:
        process.kill()


class Hears(BaseObserver):
    def __init__(self, edges: list[Transition]) -> None:
        self._edges = edges

    def transition(self, record: Transition) -> None:
        self._edges.append(record)


async def _all_run(engine: Engine, dialect: str, count: int) -> None:
    """So many requests run; of streams of SGLang, which tells of each, so many have had a token."""
    name = RUNNING[dialect]
    async with asyncio.timeout(60):
        while await _sum_of(engine, name) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


#: By what it is seen that requests run. What is no stream has no token for the metrics before its end.
RUNNING = {
    "sglang calls": "sglang:num_running_reqs",
    "sglang streams": "sglang:time_to_first_token_seconds_count",
    "vllm": "vllm:num_requests_running",
}


async def _sum_of(engine: Engine, name: str) -> int:
    adapter: Any = engine.adapter
    answer = await adapter._http.request("GET", "/metrics", deadline_s=5.0)
    return total(samples(answer.body, {name}).get(name)) or 0


async def _is_told(engine: Engine, *, open_now: int) -> None:
    """The engine counts so many open requests."""
    async with asyncio.timeout(60):
        while (await engine.adapter.request_counts(deadline_s=5.0)).open != open_now:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
