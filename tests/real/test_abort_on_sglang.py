"""A pause by abort is a retract and an abort of all requests: to clients of a real SGLang it is as its own abort."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.request
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import pytest
from lane import POLICY, PROMPTS, Lane, Streams, address, ask, output, until_running
from questions import greedy
from server import RealSGLang

from lifecycle import Engine, Fact, Fleet, State

TOKENS = 400


@pytest.fixture
def sglang(lane: Lane) -> RealSGLang:
    """The running server. Each test leaves it serving the first checkpoint."""
    return lane.serve("plain")


@asynccontextmanager
async def driven(server: RealSGLang, abort: str = "retract") -> AsyncIterator[Engine]:
    async with Fleet.connect([address(server, abort=abort)], policy=POLICY) as fleet:
        yield fleet["e"]


def asked(server: RealSGLang, prompt: str, tokens: int, **more: Any) -> Future[Any]:
    """The answer to a request that runs beside the test; a stream's is its last event."""
    future: Future[Any] = Future()

    def read() -> None:
        body = json.dumps(greedy(prompt, tokens, **more)).encode()
        request = urllib.request.Request(server.url + "/generate", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=180) as answer:
                lines = [line.removeprefix(b"data: ") for line in answer if b"{" in line or line.startswith(b"[")]
            future.set_result(json.loads(lines[-1]))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=read, daemon=True).start()
    return future


def reason(answer: dict[str, Any]) -> str:
    return str(answer["meta_info"]["finish_reason"]["type"])


@pytest.mark.parametrize("way", ["own", "retract"])
async def test_streams_end_with_what_they_have_and_queued_ones_with_nothing(sglang: RealSGLang, way: str) -> None:
    alone = {prompt: await asyncio.to_thread(output, sglang, prompt, TOKENS) for prompt in PROMPTS}
    streams = await asyncio.to_thread(Streams(sglang, tokens=TOKENS).start)
    queued = [asked(sglang, prompt, 40, stream=stream) for prompt, stream in (("fifth", False), ("sixth", True))]
    async with driven(sglang, abort=way) as engine:
        await engine.pause("abort")
        await engine.drain()
        assert (engine.state, engine.facts.paused_by) == (State.DRAINED, "abort")
        ends = await asyncio.to_thread(streams.join)
        for prompt, (ids, ended) in ends.items():
            assert ended is not None
            assert ended["type"] == "abort"
            assert 0 < len(ids) < TOKENS
            assert ids == alone[prompt][: len(ids)]
        for answer in [await asyncio.wrap_future(each) for each in queued]:
            assert (reason(answer), answer["output_ids"]) == ("abort", [])
        await engine.resume()


@pytest.mark.parametrize("way", ["own", "retract"])
async def test_calls_that_are_no_streams_lose_what_was_not_told_to_a_retract(sglang: RealSGLang, way: str) -> None:
    """Why an abort is SGLang's own by default: of such a call the front end is told every 50 tokens."""
    alone = {prompt: await asyncio.to_thread(output, sglang, prompt, TOKENS) for prompt in PROMPTS}
    calls = {prompt: asked(sglang, prompt, TOKENS, stream=False) for prompt in PROMPTS}
    await asyncio.to_thread(until_running, sglang, len(PROMPTS))
    async with driven(sglang, abort=way) as engine:
        await engine.pause("abort")
        await engine.drain()
        got = {prompt: (await asyncio.wrap_future(call)) for prompt, call in calls.items()}
        await engine.resume()
    for prompt, answer in got.items():
        assert reason(answer) == "abort"
        assert answer["output_ids"] == alone[prompt][: len(answer["output_ids"])]
    told = [len(answer["output_ids"]) for answer in got.values()]
    print(f"{way}: {told} tokens")
    assert all(told) if way == "own" else not any(count % 50 for count in told)


async def test_a_request_that_comes_between_the_two_calls_is_held_and_runs_whole(sglang: RealSGLang) -> None:
    alone = await asyncio.to_thread(output, sglang, "between", 40)
    async with driven(sglang) as engine:
        streams = await asyncio.to_thread(Streams(sglang, tokens=TOKENS).start)
        send, came = engine.adapter.send, list[Future[Any]]()

        async def with_a_request_before(call: Any, *, deadline_s: float) -> Any:
            if call.name == "abort_request":
                came.extend(asked(sglang, "between", 40, stream=stream) for stream in (True, False))
                await asyncio.sleep(1.0)  # it must not be served, for which there is no event
            return await send(call, deadline_s=deadline_s)

        engine.adapter.send = with_a_request_before  # type: ignore[method-assign]
        await engine.pause("abort")
        await engine.drain()
        await asyncio.to_thread(streams.join)
        assert [each.done() for each in came] == [False, False]
        await engine.resume()
        for answer in [await asyncio.wrap_future(each) for each in came]:
            assert (reason(answer), answer["output_ids"]) == ("length", alone)


async def test_requests_that_a_keep_has_put_back_are_ended_by_an_abort(sglang: RealSGLang) -> None:
    async with driven(sglang) as engine:
        streams = await asyncio.to_thread(Streams(sglang, tokens=TOKENS).start)
        await engine.pause("keep")
        await asyncio.sleep(1.0)  # none of them may end, for which there is no event
        assert streams.in_flight == len(PROMPTS)
        await engine.pause("abort")
        ends = await asyncio.to_thread(streams.join)
        assert {ended["type"] for _, ended in ends.values() if ended} == {"abort"}
        assert all(ids for ids, _ in ends.values())
        await engine.drain()
        await engine.resume()


async def test_frozen_requests_are_ended_by_an_abort(sglang: RealSGLang) -> None:
    async with driven(sglang) as engine:
        streams = await asyncio.to_thread(Streams(sglang, tokens=TOKENS).start)
        await engine.pause("freeze")
        await engine.pause("abort")
        ends = await asyncio.to_thread(streams.join)
        assert {ended["type"] for _, ended in ends.values() if ended} == {"abort"}
        await engine.drain()
        await engine.resume()


async def test_whoever_ends_between_the_two_calls_leaves_them_kept(sglang: RealSGLang) -> None:
    """Whoever comes next finds it paused, and an abort ends what was kept."""
    streams = await asyncio.to_thread(Streams(sglang, tokens=TOKENS).start)
    ask(sglang, "/pause_generation", {"mode": "retract"})  # all that the one before had sent
    async with driven(sglang) as engine:
        seen = await engine.adapter.observe(frozenset({Fact.ADMISSION, Fact.CLOSED}), deadline_s=10)
        assert seen.admission == "closed"
        assert streams.in_flight == len(PROMPTS)
        await asyncio.to_thread(ask, sglang, "/abort_request", {"abort_all": True})
        ends = await asyncio.to_thread(streams.join)
        assert {ended["type"] for _, ended in ends.values() if ended} == {"abort"}
    ask(sglang, "/continue_generation", {})


@pytest.mark.parametrize("way", ["own", "retract"])
async def test_requests_that_come_all_the_while_end_or_are_held_and_none_hangs(sglang: RealSGLang, way: str) -> None:
    async with driven(sglang, abort=way) as engine:
        came, stop = list[Future[Any]](), asyncio.Event()

        async def come() -> None:
            while not stop.is_set():
                came.append(asked(sglang, f"word {len(came)}", 30, stream=len(came) % 2 == 0))
                await asyncio.sleep(0.04)

        coming = asyncio.create_task(come())
        await asyncio.to_thread(until_running, sglang, 4)
        await engine.pause("abort")
        await engine.drain()
        await engine.release(["kv_cache"])
        stop.set()
        await coming
        await engine.restore_weights()
        await engine.restore_kv()
        await engine.resume()
        answers = [await asyncio.wrap_future(each) for each in came]
        ends = {reason(answer) for answer in answers}
        assert ends == {"abort", "length"}
        assert all(len(each["output_ids"]) == 30 for each in answers if reason(each) == "length")
