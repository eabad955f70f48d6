"""Which requests a look at an SGLang server is, and those of a whole cycle."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lifecycle.adapters.http import Answer, HttpClient
from lifecycle.adapters.loopback import LoopbackProcess
from lifecycle.adapters.sglang import SGLangAdapter, idle
from lifecycle.adapters.sglang.reads import in_turn

from lifecycle import Call, Fact, Facts, Fleet, FromDisk, Grade, Pending, Policy, Proved
from lifecycle.nodes.address import parse

Start = Callable[..., LoopbackProcess]

PAUSE = {"mode": "abort"}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of all requests, in the order in which they were answered."""
    paths: list[str] = []
    request = HttpClient.request

    async def noted(self: HttpClient, method: str, path: str, **how: Any) -> Answer:
        answer = await request(self, method, path, **how)
        paths.append(path.partition("?")[0][1:])
        return answer

    monkeypatch.setattr(HttpClient, "request", noted)
    return paths


@pytest.fixture(scope="module")
def slow_engine() -> Iterator[LoopbackProcess]:
    """An engine whose requests take their time."""
    with LoopbackProcess.start(weights_mib=32, kv_mib=32, arguments=("--step-delay-s", "0.02")) as engine:
        yield engine


async def adapter_of(engine: LoopbackProcess) -> SGLangAdapter:
    adapter = SGLangAdapter(parse(engine.url.replace("http://", "sglang://")))
    await adapter.connect(deadline_s=10)
    await adapter.observe(frozenset({Fact.BOOT}), deadline_s=10)  # the answer of connect() serves this one
    return adapter


READS = [
    ({Fact.BOOT}, ["server_info"]),
    ({Fact.ADMISSION}, ["ready"]),
    ({Fact.CONTENTS}, ["model_info"]),
    ({Fact.BOOT, Fact.ADMISSION, Fact.CONTENTS}, ["model_info", "ready", "server_info"]),
]


@pytest.mark.parametrize(("want", "reads"), READS, ids=lambda each: " ".join(sorted(each)))
async def test_it_reads_what_tells_the_wanted_facts_and_nothing_else(
    slow_engine: LoopbackProcess, sent: list[str], want: set[Fact], reads: list[str]
) -> None:
    adapter = await adapter_of(slow_engine)
    sent.clear()
    seen = await adapter.observe(frozenset(want), deadline_s=5)
    assert sorted(sent) == reads
    assert seen.alive
    assert (seen.boot is not None) == (Fact.BOOT in want)
    await adapter.aclose()


async def test_that_it_is_closed_is_asked_of_a_second_read_where_that_is_wanted(start: Start, sent: list[str]) -> None:
    engine = start()
    adapter = await adapter_of(engine)
    open_ = await adapter.observe(frozenset({Fact.ADMISSION, Fact.CLOSED, Fact.RUNNING}), deadline_s=5)
    assert open_.admission == "open"
    assert sent[-1] == "ready", "requests of an open server come and go"
    await adapter._http.request("POST", "/pause_generation", deadline_s=5, json_body=PAUSE)
    sent.clear()
    assert (await adapter.observe(frozenset({Fact.ADMISSION}), deadline_s=5)).admission is None
    assert sent == ["ready"]
    assert (await adapter.observe(frozenset({Fact.ADMISSION, Fact.CLOSED}), deadline_s=5)).admission == "closed"
    assert sent == ["ready", "ready", "ping"]
    counted = await adapter.observe(frozenset({Fact.ADMISSION, Fact.CLOSED, Fact.RUNNING}), deadline_s=5)
    assert counted.running == 0
    await adapter.aclose()


@pytest.mark.parametrize("want", [{Fact.ADMISSION}, {Fact.CONTENTS}, {Fact.BOOT}], ids=lambda each: min(each))
async def test_a_server_that_has_ended_is_gone_whatever_was_asked(start: Start, want: set[Fact]) -> None:
    engine = start()
    adapter = await adapter_of(engine)
    engine.kill()
    seen = await adapter.observe(frozenset(want), deadline_s=5)
    assert seen.alive is False
    assert seen.boot is None
    await adapter.aclose()


async def test_the_first_look_is_the_answer_that_connect_was_given_and_the_next_is_not(
    slow_engine: LoopbackProcess, sent: list[str]
) -> None:
    adapter = SGLangAdapter(parse(slow_engine.url.replace("http://", "sglang://")))
    await adapter.connect(deadline_s=10)
    sent.clear()
    first = await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)
    assert sent == []
    assert (await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)).boot == first.boot
    assert sent == ["server_info"]
    await adapter.aclose()


OFFLOAD = [
    *("ready", "server_info", "pause_generation", "ready"),
    *("flush_cache",),
    *("flush_cache", "release_memory_occupation", "release_memory_occupation", "server_info"),
]
ONLOAD = [
    *("ready", "server_info", "resume_memory_occupation"),
    *("update_weights_from_disk", "model_info"),
    *("resume_memory_occupation", "flush_cache"),
    *("continue_generation", "server_info", "generate", "ready"),
]


async def test_a_whole_cycle_is_twenty_requests(start: Start, sent: list[str], policy: Policy) -> None:
    engine = start()
    async with Fleet.connect([engine.url.replace("http://", "loopback://")], policy=policy) as fleet:
        assert sorted(sent) == ["abort_request", "model_info", "ready", "server_info", "server_info", "server_info"]
        sent.clear()
        await fleet.offload(weights=FromDisk(str(engine.weights), "v1"))
        assert sorted(sent) == sorted(OFFLOAD)
        sent.clear()
        await fleet.onload()
        assert sorted(sent) == sorted(ONLOAD)
    assert len(OFFLOAD) + len(ONLOAD) == 20


async def test_where_it_must_say_itself_that_it_is_closed_it_is_asked(start: Start, sent: list[str]) -> None:
    engine = start()
    policy = Policy(residual_threshold_gib=0.25, accept={"admission_closed": Grade.REPORTED})
    async with Fleet.connect([engine.url.replace("http://", "loopback://")], policy=policy) as fleet:
        sent.clear()
        await fleet.offload(weights=FromDisk(str(engine.weights), "v1"))
        assert sent.count("ping") == 1


async def test_what_was_to_be_asked_after_a_read_that_was_given_up_is_not() -> None:
    async def given_up() -> None:
        raise asyncio.CancelledError

    later = given_up()
    with pytest.raises(asyncio.CancelledError):
        await in_turn(given_up(), None, later)
    assert inspect.getcoroutinestate(later) == inspect.CORO_CLOSED


# waiting until it is idle

HELD = Facts(paused_by="abort")


async def busy(adapter: SGLangAdapter, tokens: int) -> asyncio.Task[Answer]:
    """A request of so many tokens that runs in the engine."""
    body = {"text": "x", "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}}
    asking = asyncio.ensure_future(adapter._http.request("POST", "/generate", deadline_s=20, json_body=body))
    async with asyncio.timeout(10):
        while isinstance(await adapter.prove_idle(HELD, deadline_s=5), Proved):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.005)
    return asking


async def test_it_waits_itself_until_it_is_idle(slow_engine: LoopbackProcess, sent: list[str]) -> None:
    adapter = await adapter_of(slow_engine)
    asking = await busy(adapter, 20)
    sent.clear()
    assert isinstance(await adapter.idle_within(HELD, wait_s=5.0, deadline_s=20), Proved)
    assert sent.count("flush_cache") == 1
    assert (await asking).ok
    await adapter.aclose()


async def test_it_waits_no_longer_than_it_was_given(slow_engine: LoopbackProcess) -> None:
    adapter = await adapter_of(slow_engine)
    asking = await busy(adapter, 200)
    verdict = await adapter.idle_within(HELD, wait_s=0.1, deadline_s=20)
    assert isinstance(verdict, Pending)
    assert "Timed out" in verdict.reason
    asking.cancel()
    await adapter.aclose()


@pytest.mark.parametrize("paused_by", ["keep", "freeze", None])
async def test_it_does_not_wait_where_it_would_wait_for_ever(slow_engine: LoopbackProcess, paused_by: Any) -> None:
    adapter = await adapter_of(slow_engine)
    asking = await busy(adapter, 200)
    verdict = await adapter.idle_within(Facts(paused_by=paused_by), wait_s=5.0, deadline_s=20)
    assert isinstance(verdict, Pending)
    assert "Timed out" not in verdict.reason
    asking.cancel()
    await adapter.aclose()


AWAIT_IDLE = Call("await_idle", repeatable=True, refusal_is_untouched=True)


async def test_a_pause_that_waits_has_the_engine_wait_and_asks_twice(start: Start, sent: list[str]) -> None:
    adapter = await adapter_of(start(arguments=("--step-delay-s", "0.02")))
    asking = await busy(adapter, 20)
    sent.clear()
    assert (await adapter.send(AWAIT_IDLE, deadline_s=20)).outcome == "done"
    assert sent.count("flush_cache") == 2
    assert "v1/loads" not in sent
    assert (await asking).ok
    await adapter.aclose()


@pytest.mark.slow
async def test_a_pause_that_waits_takes_what_its_router_had_sent_for_on_its_way(
    slow_engine: LoopbackProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "ARRIVING_S", 3.0)
    adapter = await adapter_of(slow_engine)
    waiting = asyncio.ensure_future(adapter.send(AWAIT_IDLE, deadline_s=20))
    asking = await busy(adapter, 300)
    done, _ = await asyncio.wait({waiting, asking}, return_when=asyncio.FIRST_COMPLETED)
    assert done == {asking}
    assert (await waiting).outcome == "done"
    await adapter.aclose()


@pytest.mark.slow
async def test_a_pause_that_waits_leaves_no_long_question_in_the_engine(
    slow_engine: LoopbackProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = await adapter_of(slow_engine)
    asking, request, waits = await busy(adapter, 300), adapter._http.request, list[float]()

    async def noted(*given: Any, **how: Any) -> Answer:
        if how.get("params"):
            waits.append(float(how["params"]["timeout"]))
        return await request(*given, **how)

    monkeypatch.setattr(adapter._http, "request", noted)
    reply = await adapter.send(AWAIT_IDLE, deadline_s=2.5)
    assert (reply.outcome, max(waits)) == ("rejected", 1.0)
    asking.cancel()
    await adapter.aclose()


async def test_of_several_data_parallel_ranks_the_requests_are_counted(start: Start, sent: list[str]) -> None:
    adapter = await adapter_of(start())
    adapter._idle.dp_size = 2
    sent.clear()
    assert (await adapter.send(AWAIT_IDLE, deadline_s=20)).outcome == "done"
    assert set(sent) == {"v1/loads"}
    await adapter.aclose()


@pytest.fixture
def made() -> Iterator[list[Any]]:
    """A connection each that was made in this loop."""
    made: list[Any] = []
    connect = asyncio.BaseEventLoop.create_connection

    async def counted(self: Any, *given: Any, **how: Any) -> Any:
        made.append(given)
        return await connect(self, *given, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.BaseEventLoop, "create_connection", counted)
        yield made


async def test_which_process_answers_is_asked_over_a_new_connection(
    slow_engine: LoopbackProcess, made: list[Any]
) -> None:
    adapter = await adapter_of(slow_engine)
    await adapter.observe(frozenset({Fact.BOOT, Fact.CONTENTS}), deadline_s=5)
    before = len(made)
    await adapter.observe(frozenset({Fact.BOOT, Fact.CONTENTS}), deadline_s=5)
    assert len(made) == before, "both reads used connections that were kept"
    assert (await adapter.boot_anew(deadline_s=5)).boot is not None
    assert len(made) == before + 1
    await adapter.observe(frozenset({Fact.BOOT, Fact.CONTENTS, Fact.ADMISSION}), deadline_s=5)
    assert len(made) == before + 1, "those that were kept are kept still"
    await adapter.aclose()


async def test_attaching_makes_a_connection_for_each_look(start: Start, made: list[Any]) -> None:
    engine = start()
    async with Fleet.connect([engine.url.replace("http://", "loopback://")]):
        assert len(made) == 3


async def test_attaching_asks_twice_more_over_new_connections(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, asked = start(), []
    anew = SGLangAdapter.boot_anew

    async def noted(self: SGLangAdapter, *, deadline_s: float) -> Any:
        asked.append(deadline_s)
        return await anew(self, deadline_s=deadline_s)

    monkeypatch.setattr(SGLangAdapter, "boot_anew", noted)
    async with Fleet.connect([engine.url.replace("http://", "loopback://")]) as fleet:
        assert len(asked) == 2, "of two that take turns, one is another"
        assert len(fleet) == 1


async def test_a_server_that_ends_once_it_has_answered_is_found_gone(start: Start) -> None:
    engine = start()
    adapter = await adapter_of(engine)
    boot, answer = (await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)).boot, adapter._server_info

    async def ends(*given: Any) -> Answer:
        answered = await answer(*given)
        engine.kill()
        return answered

    adapter._server_info = ends
    assert (await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)).boot == boot
    adapter._server_info = answer
    assert (await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)).alive is False
    await adapter.aclose()
