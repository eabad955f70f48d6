"""SGLang in this process: which coroutines are run for each command, and what is made of what they return or raise."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from idle_process import idle_process
from lifecycle.adapters.sglang_in_process import InProcessSGLang
from sglang_stand_in import FakeEngine, FakeManager, installed

from lifecycle import (
    ConfigurationError,
    Engine,
    Fleet,
    FromDisk,
    Grade,
    Policy,
    Rejected,
    State,
)
from lifecycle.core.calls import Call
from lifecycle.core.facts import Facts
from lifecycle.core.observation import Probe
from lifecycle.core.verdicts import REQUESTS_RUN, NotApplicable, Pending, Proved, Refuted, Unmeasurable
from lifecycle.nodes.probes import NoProbe
from lifecycle.sync import Fleet as BlockingFleet
from lifecycle.sync import Loop

UNSEEN = Policy(
    accept=dict.fromkeys(("memory_returned", "tags_unmapped", "weights_mapped", "kv_mapped"), Grade.ACKNOWLEDGED)
)
NEW = FromDisk("/models/b", "v1")
ABORTED = Facts(admission="closed", paused_by="abort")


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the engine; the modules that are imported of SGLang are there."""
    installed(monkeypatch)
    running = idle_process()
    yield running
    running.kill()
    running.wait()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The engine's loop, which nobody runs."""
    own = asyncio.new_event_loop()
    yield own
    own.close()


@pytest.fixture
def sglang(process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop) -> FakeEngine:
    """An engine of which blocking methods are used."""
    return FakeEngine(process, loop)


def engine_of(sglang: Any, **options: Any) -> Engine:
    return Engine(InProcessSGLang(sglang, name="e", **options), name="e", policy=UNSEEN, probe=NoProbe("no memory"))


GIB = 1 << 30
LOAD = "load('/models/b', 'v1')"


async def test_the_ring(sglang: FakeEngine) -> None:
    manager = sglang.tokenizer_manager
    async with Fleet([engine_of(sglang)]) as fleet:
        assert fleet["e"].state is State.SERVING
        assert [tag.expected_bytes for tag in fleet["e"].capabilities.tags] == [round(0.1 * GIB), round(0.2 * GIB)]
        async with fleet.offloaded(weights=NEW):
            assert fleet["e"].state is State.RELEASED
            assert manager.released == {"weights", "kv_cache"}
            sent = manager.sent()
            assert sent[0] == "pause('abort')"
            assert sent[-2:] == ["release('kv_cache')", "release('weights')"]
            assert all(each.startswith("flush(") for each in sent[1:-2])
        assert fleet["e"].state is State.SERVING
    assert manager.sent() == ["resume('weights')", LOAD, "resume('kv_cache')", "flush()", "continue()"]


async def test_the_loop_on_which_it_was_first_used_is_its_home(sglang: FakeEngine) -> None:
    """Its own one, on which it was constructed, would never hear an answer."""
    manager = sglang.tokenizer_manager
    await manager.get_internal_state()
    async with Fleet([engine_of(sglang)]) as fleet:
        await fleet.pause("keep")
        assert fleet["e"].state is State.PAUSED
    assert manager.event_loop is asyncio.get_running_loop()


def test_the_blocking_fleet_between_blocking_methods(sglang: FakeEngine) -> None:
    with BlockingFleet(Fleet([engine_of(sglang)]), Loop()) as fleet:
        with fleet.offloaded(weights=NEW):
            assert fleet["e"].state is State.RELEASED
        sglang.loop.run_until_complete(sglang.tokenizer_manager.flush_cache())
        fleet.pause("keep")


async def test_what_it_refuses(sglang: FakeEngine) -> None:
    manager = sglang.tokenizer_manager
    engine = await engine_of(sglang).connect()
    await engine.pause("abort")
    await engine.drain()
    manager.instead["load"] = "no such folder"
    with pytest.raises(Rejected, match="no such folder"):
        await engine.update_weights(NEW)
    manager.instead["flush"] = ValueError("odd")
    assert "ValueError: odd" in (await engine.adapter.send(Call("flush_cache"), deadline_s=5)).detail
    await engine.aclose()


async def test_a_call_that_outlasts_its_deadline_is_waited_for_by_the_barrier(sglang: FakeEngine) -> None:
    adapter, goes_on = engine_of(sglang).adapter, threading.Event()
    await adapter.connect(deadline_s=5)
    sglang.tokenizer_manager.holds = lambda name: name == "pause" and not goes_on.is_set()
    reply = await adapter.send(Call("pause_generation", {"mode": "retract"}), deadline_s=0.2)
    assert (reply.outcome, reply.late) == ("lost", True)
    assert not await adapter.barrier(deadline_s=0.2)
    goes_on.set()
    assert await adapter.barrier(deadline_s=5)
    assert sglang.tokenizer_manager.is_pause
    await adapter.aclose()


async def test_a_cancelled_command_returns_after_its_call_has_ended(sglang: FakeEngine) -> None:
    engine, goes_on, begun = await engine_of(sglang).connect(), threading.Event(), threading.Event()

    def holds(name: str) -> bool:
        if name == "pause":
            begun.set()
        return name == "pause" and not goes_on.is_set()

    sglang.tokenizer_manager.holds = holds
    pausing = asyncio.create_task(engine.pause("keep"))
    assert await asyncio.to_thread(begun.wait, 5)
    pausing.cancel()
    done, _ = await asyncio.wait({pausing}, timeout=0.1)
    assert not done
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await pausing
    assert engine.facts.admission == "closed"
    await engine.aclose()


async def test_a_loop_that_was_closed(sglang: FakeEngine) -> None:
    """As after an `asyncio.run` in which it was first used: no call reaches the scheduler any more."""
    engine = await engine_of(sglang).connect()
    sglang.loop.close()
    reply = await engine.adapter.send(Call("continue_generation"), deadline_s=5)
    assert (reply.outcome, reply.refused) == ("lost", True)
    assert "is closed" in reply.detail
    with pytest.raises(ConfigurationError, match="is closed"):
        await engine_of(sglang).connect()
    await engine.aclose()


async def test_processes_that_have_ended(sglang: FakeEngine, process: subprocess.Popen[bytes]) -> None:
    engine = await engine_of(sglang).connect()
    sglang.tokenizer_manager.instead["get_state"] = RuntimeError("odd")
    assert (await engine.adapter.observe(frozenset(), deadline_s=5)).alive is None
    assert not await engine.adapter.barrier(deadline_s=5)
    process.kill()
    process.wait()
    assert await engine.verify() is State.GONE
    assert await engine.adapter.barrier(deadline_s=5)
    await engine.aclose()


async def test_idle(process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop) -> None:
    """With several data-parallel ranks the first alone answers: then there must be no request at all."""
    sglang = FakeEngine(process, loop, dp_size=2)
    manager, adapter = sglang.tokenizer_manager, engine_of(sglang).adapter
    await adapter.connect(deadline_s=5)
    assert isinstance(await adapter.prove_idle(ABORTED, deadline_s=5), Proved)
    manager.rid_to_state["a"] = SimpleNamespace(output_ids=[])
    assert isinstance(await adapter.prove_idle(ABORTED, deadline_s=5), Unmeasurable)
    manager.instead["flush"] = False
    verdict = await adapter.prove_idle(ABORTED, deadline_s=5)
    assert isinstance(verdict, Pending)
    assert verdict.figures[REQUESTS_RUN] is True
    manager.instead["flush"] = RuntimeError("odd")
    assert "RuntimeError: odd" in (await adapter.prove_idle(ABORTED, deadline_s=5)).reason
    await adapter.aclose()


async def test_requests_are_counted_where_that_says_something(sglang: FakeEngine) -> None:
    manager, adapter = sglang.tokenizer_manager, engine_of(sglang).adapter
    await adapter.connect(deadline_s=5)
    states: list[tuple[bool, int, int | None]] = [(False, 0, 0), (False, 2, 2), (True, 0, 0), (True, 2, None)]
    for paused, count, running in states:
        manager.is_pause = paused
        manager.rid_to_state = {str(number): SimpleNamespace(output_ids=[]) for number in range(count)}
        seen = await adapter.observe(frozenset(), deadline_s=5)
        assert (seen.admission, seen.running) == ("closed" if paused else "open", running)
    await adapter.aclose()


async def test_a_token(sglang: FakeEngine) -> None:
    manager, adapter = sglang.tokenizer_manager, engine_of(sglang).adapter
    await adapter.connect(deadline_s=5)
    verdict = await adapter.answers(Probe(), deadline_s=5)
    assert isinstance(verdict, Proved)
    assert verdict.figures["output_ids"] == (7,)
    manager.instead["generate"] = {"output_ids": [], "meta_info": {"finish_reason": {"type": "abort"}}}
    assert isinstance(await adapter.answers(Probe(), deadline_s=5), Refuted)
    manager.instead["get_tokens"] = ValueError("no")
    assert "ValueError: no" in (await adapter.answers(Probe(), deadline_s=5)).reason
    manager.is_pause = True
    manager.sent()
    assert isinstance(await adapter.answers(Probe(), deadline_s=5), Pending)
    assert manager.sent() == [], "a request that is held back never ends"
    await adapter.aclose()


async def test_a_probe_that_queues_behind_kept_requests(sglang: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of those count, and the probe is aborted, as it is where nothing comes at all."""
    monkeypatch.setattr("lifecycle.adapters.sglang_in_process.adapter.QUEUED_S", 0.05)
    monkeypatch.setattr("lifecycle.adapters.sglang_in_process.calls.ABORTED_S", 0.05)
    manager, adapter = sglang.tokenizer_manager, engine_of(sglang).adapter
    await adapter.connect(deadline_s=5)
    manager.instead["generate"] = None
    manager.sent()
    assert isinstance(await adapter.answers(Probe(), deadline_s=0.5), Pending)
    assert manager.sent() == ["abort()"]
    kept = SimpleNamespace(output_ids=[1])
    manager.rid_to_state["kept"] = kept
    asking = asyncio.create_task(adapter.answers(Probe(), deadline_s=5))
    while not asking.done():
        kept.output_ids.append(1)
        await asyncio.sleep(0.01)
    assert "kept requests get tokens" in asking.result().reason
    assert manager.sent() == ["abort()"]
    assert await adapter.barrier(deadline_s=5), "nothing of it is left"
    await adapter.aclose()


async def test_a_prefill_engine_cannot_answer_alone(
    process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop
) -> None:
    adapter = engine_of(FakeEngine(process, loop, disaggregation_mode="prefill")).adapter
    await adapter.connect(deadline_s=5)
    assert isinstance(await adapter.answers(Probe(), deadline_s=5), NotApplicable)
    await adapter.aclose()


async def test_a_push(sglang: FakeEngine) -> None:
    manager, adapter = sglang.tokenizer_manager, engine_of(sglang).adapter
    await adapter.connect(deadline_s=5)
    manager.sent()
    assert (await adapter.send(adapter.push_call("tensor", {}, "v1"), deadline_s=5)).outcome == "done"
    assert (await adapter.send(adapter.close_push_call(), deadline_s=5)).outcome == "done"
    assert manager.sent() == ["tensor('v1')", "end()"]
    manager.instead["end"] = "no weight-update session is open"
    assert (await adapter.send(adapter.close_push_call(), deadline_s=5)).outcome == "done"
    manager.instead["end"] = "something else"
    assert (await adapter.send(adapter.close_push_call(), deadline_s=5)).outcome == "rejected"
    await adapter.aclose()


# bad input


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"sizes": {"weights": 0}}, "sizes must be bytes of weights and kv_cache"),
        ({"sizes": {"cuda_graph": 1}}, "sizes must be bytes of weights and kv_cache"),
        ({"unknown_version": "perhaps"}, "unknown_version must be refuse or warn"),
        ({"tags": "weights"}, "tags must be a sequence of one or more"),
        ({"tags": ()}, "tags must be a sequence of one or more"),
    ],
)
def test_bad_options(sglang: FakeEngine, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        InProcessSGLang(sglang, **options)


def test_an_object_that_is_none() -> None:
    with pytest.raises(ConfigurationError, match=r"give an sglang.Engine, not FakeManager"):
        InProcessSGLang(FakeManager())


async def test_a_version_that_nobody_knows(sglang: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "9.9.0")
    with pytest.raises(ConfigurationError, match=r"SGLang 9.9.0 is not among the versions that are known here"):
        await engine_of(sglang).connect()
    engine = await engine_of(sglang, unknown_version="warn").connect()
    assert any("driven as 0.5.23" in note for note in engine.capabilities.notes)
    await engine.aclose()


async def test_a_loop_that_is_blocked(sglang: FakeEngine) -> None:
    adapter = engine_of(sglang).adapter
    sglang.tokenizer_manager.holds = lambda name: True
    with pytest.raises(ConfigurationError, match=r"did not answer in 0.2 s; a call of somebody else may block"):
        await adapter.connect(deadline_s=0.2)
    sglang.tokenizer_manager.holds = lambda name: False
    await adapter.aclose()


async def test_an_engine_whose_process_has_ended_before(sglang: FakeEngine, process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    with pytest.raises(ConfigurationError, match="a process of it has ended"):
        await engine_of(sglang).connect()
