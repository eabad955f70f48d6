"""A drain that waits on a real engine: a resume gives it up, and a cancelled one is paused. No request is lost."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess

import lifecycle.sync
from lifecycle import EngineBusy, Fleet, FleetError, Policy, Preempted, State

pytestmark = pytest.mark.slow

POLICY = Policy(residual_threshold_gib=0.25, settle_s=1.0, poll_s=0.02)
TOKENS = 150


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


async def until(condition: Callable[[], Any]) -> None:
    """The condition, asked in a thread, came true within some seconds."""
    await asyncio.to_thread(wait_until, condition)


def wait_until(condition: Callable[[], Any], deadline_s: float = 10.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)


async def running(process: LoopbackProcess) -> asyncio.Future[int]:
    """A request that runs."""
    flight = asyncio.ensure_future(asyncio.to_thread(generate, process))
    await until(lambda: requests_of(process))
    return flight


def requests_of(process: LoopbackProcess) -> int:
    with urllib.request.urlopen(process.url + "/v1/loads?include=core", timeout=10) as answer:
        return int(json.loads(answer.read())["loads"][0]["num_running_reqs"])


async def test_a_resume_gives_up_the_drain_and_the_request_ends_whole(process: LoopbackProcess) -> None:
    async with Fleet.connect([address(process)], policy=POLICY) as fleet:
        engine, flight = fleet["e"], await running(process)
        await engine.pause()
        drain = asyncio.ensure_future(engine.drain(deadline_s=30))
        await until(lambda: engine.state is State.DRAINING)
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
        await until(lambda: engine.state is State.DRAINING)
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
        flight = threading.Thread(target=generate, args=(process,), daemon=True)
        flight.start()
        wait_until(lambda: requests_of(process))
        fleet.pause()
        other = threading.Thread(target=drain, args=(fleet,), daemon=True)
        other.start()
        wait_until(lambda: fleet["e"].state is State.DRAINING)
        fleet.resume(preempt=True, deadline_s=10)
        other.join(10)
        flight.join(30)
        assert [type(error) for error in told] == [Preempted]
        assert fleet["e"].state is State.SERVING
