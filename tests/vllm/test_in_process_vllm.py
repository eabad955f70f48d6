"""vLLM in this process: which methods are called for each command, and what is made of what they return or raise."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from vllm_stand_in import UNSEEN, Core, FakeAsyncLLM, FakeLLM, engine_of

from lifecycle import (
    Fleet,
    FromDisk,
    Kept,
    OperationFailed,
    Rejected,
    State,
)
from lifecycle.core.calls import Call
from lifecycle.core.facts import Fact, Facts
from lifecycle.core.observation import Probe
from lifecycle.core.verdicts import REQUESTS_RUN, NotApplicable, Pending, Proved, Refuted
from lifecycle.nodes.probes import NoProbe
from lifecycle.sync import Fleet as BlockingFleet
from lifecycle.sync import Loop

NEW = FromDisk("/models/b", "v1")
CLOSED = Facts(admission="closed", paused_by="wait")


Kinds = pytest.mark.parametrize("kind", ["AsyncLLM", "LLM"])


@pytest.fixture
def llm(kind: str, core: Core, process: subprocess.Popen[bytes], vllm: SimpleNamespace) -> Any:
    """The object of this kind."""
    return FakeAsyncLLM(core, process) if kind == "AsyncLLM" else FakeLLM(core, process)


def pause(kind: str, mode: str, clear: bool = True) -> list[str]:
    """The methods that a pause calls."""
    if kind == "AsyncLLM":
        return [f"pause({mode!r}, {clear})"]
    return [f"sleep(0, {mode!r})", *(["reset_prefix_cache(True)"] if clear else [])]


RESUME = {"AsyncLLM": ["resume()"], "LLM": ["wake_up(['scheduling'])"]}
LOAD = ["collective_rpc('reload_weights', {'weights_path': '/models/b'})", "set_label('v1')"]


@Kinds
async def test_the_ring(kind: str, llm: Any, core: Core) -> None:
    """The last wake resumes, and is followed at once by a pause that keeps what slipped in."""
    async with Fleet([engine_of(llm)]) as fleet:
        assert fleet["e"].state is State.SERVING
        async with fleet.offloaded(weights=NEW, mode="keep"):
            assert fleet["e"].state is State.RELEASED
            idle = pause(kind, "keep")
            assert core.sent() == [*pause(kind, "keep"), *idle, *idle, "sleep(2, 'keep')"]
        assert fleet["e"].state is State.SERVING
    wake = ["wake_up(['kv_cache'])", *pause(kind, "keep"), "reset_prefix_cache()"]
    assert core.sent() == ["wake_up(['weights'])", *LOAD, *wake, *RESUME[kind]]


@Kinds
@pytest.mark.parametrize(("mode", "clear"), [("abort", True), ("wait", True), ("keep", True), ("freeze", False)])
async def test_a_pause_of_each_mode(kind: str, llm: Any, core: Core, mode: Any, clear: bool) -> None:
    engine = await engine_of(llm).connect()
    await engine.pause(mode)
    assert core.sent() == pause(kind, "keep" if mode == "freeze" else mode, clear)
    await engine.aclose()


@Kinds
async def test_kept_weights_stay_on_the_host(kind: str, llm: Any, core: Core) -> None:
    async with Fleet([engine_of(llm)]) as fleet:
        await fleet.offload(weights=Kept())
        assert core.sent()[-1] == "sleep(1, 'keep')"


@Kinds
async def test_a_wake_that_woke_nothing_is_refused(kind: str, llm: Any, core: Core) -> None:
    """vLLM raises nothing where a tag is unknown to it; it only says that not everything is awake."""
    engine = await engine_of(llm).connect()
    await asyncio.gather(Fleet([engine]).offload(weights=Kept()))
    await engine.restore_weights()
    core.instead["wake_up"] = False
    with pytest.raises(Rejected, match="not everything is awake, after the wake of kv_cache"):
        await engine.restore_kv()
    await engine.aclose()


@Kinds
async def test_a_prefix_cache_that_was_not_reset_is_refused(kind: str, llm: Any, core: Core) -> None:
    engine = await engine_of(llm).connect()
    await engine.pause("abort")
    await engine.drain()
    core.instead["reset_prefix_cache"] = False
    with pytest.raises(Rejected, match="requests hold blocks of it"):
        await engine.update_weights(NEW)
    await engine.aclose()


@Kinds
async def test_a_level_that_there_is_not_is_not_sent(kind: str, llm: Any, core: Core) -> None:
    engine = await engine_of(llm).connect()
    core.sent()
    reply = await engine.adapter.send(Call("sleep", {"level": "7", "mode": "keep"}), deadline_s=5)
    assert (reply.outcome, core.sent()) == ("rejected", [])
    assert "no sleep of level 7" in reply.detail
    await engine.aclose()


@Kinds
async def test_what_a_call_raises_is_a_refusal(kind: str, llm: Any, core: Core) -> None:
    engine = await engine_of(llm).connect()
    await engine.pause("abort")
    await engine.drain()
    core.instead["collective_rpc"] = ValueError("no such file")
    with pytest.raises(Rejected, match="ValueError: no such file"):
        await engine.update_weights(NEW)
    assert engine.facts.contents["weights"] is None
    core.instead["collective_rpc"] = "three"
    with pytest.raises(OperationFailed, match="no result of each worker"):
        await engine.update_weights(NEW)
    await engine.aclose()


async def test_a_resume_of_an_llm_whose_memory_sleeps_still_is_refused(
    core: Core, process: subprocess.Popen[bytes], vllm: SimpleNamespace
) -> None:
    engine = await engine_of(FakeLLM(core, process)).connect()
    await engine.pause("abort")
    await engine.drain()
    core.asleep = frozenset({"kv_cache"})  # somebody else did that
    with pytest.raises(Rejected, match="memory is asleep still"):
        await engine.resume()
    await engine.aclose()


async def test_a_pause_that_waits_is_left_to_wait_and_not_joined(
    core: Core, process: subprocess.Popen[bytes], vllm: SimpleNamespace
) -> None:
    """`is_paused` says that it took effect; its answer comes with the last request."""
    llm = FakeAsyncLLM(core, process)
    engine, ended = await engine_of(llm).connect(), asyncio.Event()

    async def waits(*, mode: str, clear_cache: bool) -> None:
        core.paused, core.requests = True, 1
        await ended.wait()
        core.requests = 0

    llm.pause_generation = waits  # type: ignore[method-assign]
    await engine.pause("wait", deadline_s=20)
    assert engine.state is State.PAUSED
    assert await engine.adapter.barrier(deadline_s=5)
    verdict = await engine.adapter.prove_idle(CLOSED, deadline_s=0.3)
    assert isinstance(verdict, Pending)
    assert verdict.figures[REQUESTS_RUN] is True
    ended.set()
    await engine.drain()
    await engine.aclose()


@Kinds
async def test_an_open_engine_is_not_asked_whether_it_is_idle(kind: str, llm: Any, core: Core) -> None:
    engine = await engine_of(llm).connect()
    core.sent()
    verdict = await engine.adapter.prove_idle(CLOSED, deadline_s=5)
    assert isinstance(verdict, Pending)
    assert core.sent() == []
    await engine.aclose()


@Kinds
async def test_a_call_that_outlasts_its_deadline_is_waited_for_by_the_barrier(kind: str, llm: Any, core: Core) -> None:
    adapter, goes_on = engine_of(llm).adapter, threading.Event()
    await adapter.connect(deadline_s=5)
    if kind == "AsyncLLM":
        core.holds = lambda name: name == "pause" and not goes_on.is_set()
    else:
        llm.sleep = lambda level, mode: (goes_on.wait(20), core.call("sleep", level, mode))
    reply = await adapter.send(Call("pause", {"mode": "keep", "clear_cache": "true"}), deadline_s=0.2)
    assert (reply.outcome, reply.late) == ("lost", True)
    assert not await adapter.barrier(deadline_s=0.2)
    goes_on.set()
    assert await adapter.barrier(deadline_s=5)
    assert core.paused
    await adapter.aclose()


@Kinds
async def test_an_engine_core_that_has_ended_is_gone(
    kind: str, llm: Any, core: Core, process: subprocess.Popen[bytes]
) -> None:
    engine = await engine_of(llm).connect()
    core.dead = True
    if kind == "LLM":
        llm.llm_engine.engine_core.resources.engine_dead = True
    process.kill()
    process.wait()
    reply = await engine.adapter.send(Call("resume"), deadline_s=5)
    assert (reply.outcome, "its engine core has ended" in reply.detail) == ("lost", True)
    assert await engine.verify() is State.GONE
    assert await engine.adapter.barrier(deadline_s=5), "nothing can take effect any more"
    await engine.aclose()


@Kinds
async def test_one_that_is_silent_and_lives_is_not_gone(kind: str, llm: Any, core: Core) -> None:
    engine = await engine_of(llm).connect()
    core.instead["is_paused"] = core.instead["is_sleeping"] = RuntimeError("odd")
    seen = await engine.adapter.observe(frozenset(), deadline_s=5)
    assert (seen.alive, seen.detail) == (None, "RuntimeError: odd")
    assert not await engine.adapter.barrier(deadline_s=5)
    await engine.aclose()


@Kinds
async def test_ranks_that_disagree(kind: str, llm: Any, core: Core) -> None:
    engine = await engine_of(llm).connect()
    disagree = RuntimeError("Engines returned different is_scheduler_paused results: [True, False]")
    core.instead["is_paused"] = core.instead["is_sleeping"] = disagree
    seen = await engine.adapter.observe(frozenset(), deadline_s=5)
    assert (seen.alive, seen.admission) == (True, None)
    assert "its data-parallel ranks disagree" in seen.detail
    await engine.aclose()


@Kinds
async def test_requests_are_counted_where_that_says_something(kind: str, llm: Any, core: Core) -> None:
    """Of a closed engine the number has kept and queued ones in it: only none says that none runs."""
    adapter = engine_of(llm).adapter
    await adapter.connect(deadline_s=5)
    states: list[tuple[bool, int, int | None]] = [(False, 0, 0), (False, 2, 2), (True, 0, 0), (True, 2, None)]
    for core.paused, core.requests, running in states:
        seen = await adapter.observe(frozenset({Fact.RUNNING}), deadline_s=5)
        assert (seen.admission, seen.running) == ("closed" if core.paused else "open", running)
    await adapter.aclose()


@Kinds
async def test_a_token(kind: str, llm: Any, core: Core) -> None:
    engine = await engine_of(llm).connect()
    verdict = await engine.adapter.answers(Probe(tokens=2), deadline_s=5)
    assert isinstance(verdict, Proved)
    assert verdict.figures["output_ids"] == (7, 7)
    core.instead["generate"] = []
    assert isinstance(await engine.adapter.answers(Probe(), deadline_s=5), Refuted)
    core.instead["get_tokens"] = ValueError("no")
    assert "ValueError: no" in (await engine.adapter.answers(Probe(), deadline_s=5)).reason
    await engine.aclose()


async def test_a_probe_that_queues_behind_kept_requests(
    core: Core, process: subprocess.Popen[bytes], vllm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens of those count, and the probe is aborted, as it is where nothing comes at all."""
    monkeypatch.setattr("lifecycle.adapters.vllm_in_process.adapter.QUEUED_S", 0.05)
    engine = await engine_of(FakeAsyncLLM(core, process)).connect()
    core.instead["generate"] = None
    assert isinstance(await engine.adapter.answers(Probe(), deadline_s=0.6), Pending)
    assert core.sent() == ["abort()"]
    kept = asyncio.create_task(_counting(vllm))
    verdict = await engine.adapter.answers(Probe(), deadline_s=2.0)
    kept.cancel()
    assert "kept requests get tokens" in verdict.reason
    assert core.sent() == ["abort()"]
    await engine.aclose()


async def _counting(vllm: SimpleNamespace) -> None:
    while True:
        vllm.tokens += 1
        await asyncio.sleep(0.01)


async def test_a_probe_takes_nobodys_outputs(
    core: Core, process: subprocess.Popen[bytes], vllm: SimpleNamespace
) -> None:
    """`LLM.generate` returns the outputs of all requests: those that were enqueued would be lost to their caller."""
    engine = await engine_of(FakeLLM(core, process)).connect()
    core.requests = 1
    core.calls.clear()
    assert isinstance(await engine.adapter.answers(Probe(), deadline_s=5), NotApplicable)
    assert "get_tokens()" not in core.calls
    await engine.aclose()


async def test_an_llm_whose_core_is_in_this_process(core: Core, vllm: SimpleNamespace) -> None:
    """It refuses to wait, and nothing steps there beside a call: idle is a pause by keep that was answered."""
    engine = await engine_of(FakeLLM(core, None)).connect()
    assert set(engine.capabilities.pause) == {"abort", "keep", "freeze"}
    processes = await engine.adapter.processes()
    assert processes is not None
    await engine.pause("abort")
    core.sent()
    await engine.drain()
    assert set(core.sent()) == set(pause("LLM", "keep"))
    await engine.aclose()


async def test_an_llm_is_called_with_the_cuda_device_of_its_maker(
    core: Core, vllm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread has a device of its own, and begins with the first one."""
    devices = {threading.get_ident(): 3}
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        current_device=lambda: devices.get(threading.get_ident(), 0),
        set_device=lambda device: devices.update({threading.get_ident(): device}),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    llm, seen = FakeLLM(core, None), list[int]()
    llm.llm_engine.is_sleeping = lambda: seen.append(cuda.current_device()) or core.paused
    engine = await engine_of(llm).connect()
    assert set(seen) == {3}
    await engine.aclose()


@Kinds
async def test_a_push(kind: str, llm: Any, core: Core) -> None:
    adapter = engine_of(llm).adapter
    await adapter.connect(deadline_s=5)
    core.sent()
    replies = [
        await adapter.send(adapter.push_call("update", {"update_info": 1}, "v1"), deadline_s=5),
        await adapter.send(adapter.close_push_call(), deadline_s=5),
    ]
    if kind == "AsyncLLM":
        assert [each.outcome for each in replies] == ["done", "done"]
        assert core.sent() == ["update_weights({'update_info': 1})", "finish_weight_update(None)"]
    else:
        assert "no attribute 'update_weights'" in replies[0].detail
    await adapter.aclose()


@Kinds
def test_the_blocking_fleet_from_another_thread(kind: str, llm: Any) -> None:
    """An AsyncLLM's loop runs in its own thread; a call that another loop awaited would never return."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        engine = engine_of(llm, loop=loop) if kind == "AsyncLLM" else engine_of(llm)
        with BlockingFleet(Fleet([engine]), Loop()) as fleet, fleet.offloaded(weights=Kept()):
            assert fleet["e"].state is State.RELEASED
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.slow
async def test_beside_an_engine_over_http(core: Core, process: subprocess.Popen[bytes], vllm: SimpleNamespace) -> None:
    with LoopbackProcess.start(weights_backup=True) as server:
        others = Fleet.connect(
            [f"loopback://{server.url.removeprefix('http://')}?name=there"],
            policy=UNSEEN,
            probe=NoProbe("not looked at"),
        )
        async with Fleet([engine_of(FakeAsyncLLM(core, process)), *others.engines]) as fleet:
            async with fleet.offloaded(weights=Kept()):
                assert {engine.state for engine in fleet} == {State.RELEASED}
            assert {engine.state for engine in fleet} == {State.SERVING}
