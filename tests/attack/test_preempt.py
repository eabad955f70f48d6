"""A drain that waits on a real engine: a resume gives it up, and a cancelled one is paused. No request is lost."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess

import lifecycle.sync
from lifecycle import Engine, EngineBusy, Fleet, FleetError, Policy, Preempted, State

pytestmark = pytest.mark.slow

POLICY = Policy(residual_threshold_gib=0.25, settle_s=1.0, poll_s=0.02)
TOKENS = 300


@pytest.fixture(scope="module")
def process() -> Iterator[LoopbackProcess]:
    """An engine whose pause closes admission and lets requests run on, so that a drain has to wait for them."""
    with LoopbackProcess.start(
        weights_mib=16, kv_mib=16, faults=["pause=mode"], arguments=("--step-delay-s", "0.01")
    ) as started:
        yield started


def address(process: LoopbackProcess) -> str:
    return f"loopback://127.0.0.1:{process.port}?name=e"


def generate(process: LoopbackProcess, tokens: int = TOKENS) -> int:
    """How many tokens came."""
    body = {"text": "hello", "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}}
    request = urllib.request.Request(process.url + "/generate", json.dumps(body).encode(), method="POST")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return len(json.loads(answer.read())["output_ids"])


async def draining(engine: Engine, drain: asyncio.Future[Any]) -> None:
    """The drain has asked the engine at least once, and goes on."""
    async with asyncio.timeout(10):
        while engine.state is not State.DRAINING:  # noqa: ASYNC110 - a state has no event to wait for
            await asyncio.sleep(0.01)
    assert not drain.done()


async def running(process: LoopbackProcess) -> asyncio.Future[int]:
    """A request that runs."""
    flight = asyncio.ensure_future(asyncio.to_thread(generate, process))
    async with asyncio.timeout(10):
        while not await asyncio.to_thread(requests_of, process):  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.02)
    return flight


def requests_of(process: LoopbackProcess) -> int:
    with urllib.request.urlopen(process.url + "/v1/loads?include=core", timeout=10) as answer:
        return int(json.loads(answer.read())["loads"][0]["num_running_reqs"])


async def test_a_resume_gives_up_the_drain_and_the_request_ends_whole(process: LoopbackProcess) -> None:
    async with Fleet.connect([address(process)], policy=POLICY) as fleet:
        engine, flight = fleet["e"], await running(process)
        await engine.pause()
        drain = asyncio.ensure_future(engine.drain(deadline_s=30))
        await draining(engine, drain)
        with pytest.raises(EngineBusy):
            await engine.resume()
        await engine.resume(preempt=True, deadline_s=10)
        with pytest.raises(Preempted, match=r"given up for resume\(preempt=True\)") as told:
            await drain
        assert told.value.settled is State.PAUSED
        assert await flight == TOKENS
        assert await asyncio.to_thread(generate, process, 3) == 3


async def test_a_cancelled_drain_is_paused_and_resumes_without_more(process: LoopbackProcess) -> None:
    async with Fleet.connect([address(process)], policy=POLICY) as fleet:
        engine, flight = fleet["e"], await running(process)
        await engine.pause()
        drain = asyncio.ensure_future(engine.drain(deadline_s=30))
        await draining(engine, drain)
        drain.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drain
        assert engine.state is State.PAUSED
        await engine.resume(deadline_s=10)
        assert await flight == TOKENS


def test_a_thread_resumes_while_another_drains(process: LoopbackProcess) -> None:
    told: list[BaseException] = []

    def drain(fleet: lifecycle.sync.Fleet) -> None:
        try:
            fleet.drain(deadline_s=30)
        except FleetError as error:
            told.extend(error.exceptions)

    with lifecycle.sync.Fleet.connect([address(process)], policy=POLICY) as fleet:
        flight = threading.Thread(target=generate, args=(process,))
        flight.start()
        while not requests_of(process):
            pass
        fleet.pause()
        other = threading.Thread(target=drain, args=(fleet,))
        other.start()
        while fleet["e"].state is not State.DRAINING:
            pass
        fleet.resume(preempt=True, deadline_s=10)
        other.join(10)
        flight.join(30)
        assert [type(error) for error in told] == [Preempted]
        assert fleet["e"].state is State.SERVING
