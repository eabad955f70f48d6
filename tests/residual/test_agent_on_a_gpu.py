"""An engine of another node: its hook mode, allocator, memory and headroom, reported by the agent of that node."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import uvicorn
from lifecycle.adapters.loopback import LoopbackProcess
from on_a_card import CONTEXT, KV, TRAINER, WEIGHTS, Card, OnGpu, disk
from stand_in_nvml import GIB

from lifecycle import Engine, Grade, GuardRefused, Policy, State, Unmeasurable
from lifecycle.doctor import examine
from lifecycle.nodes.address import parse
from lifecycle.nodes.agent import Agent, application
from lifecycle.nodes.driver import NvmlDriver
from lifecycle.nodes.processes import by_pid
from lifecycle.nodes.remote import TOKEN, RemoteNode
from lifecycle.nodes.this_host import ThisHost

pytestmark = pytest.mark.usefixtures("bare_environment")

BLACKWELL = {"name": "NVIDIA B200", "capability": [10, 0]}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Agent], str]]:
    """Serves an agent of this process until the test ends; its address."""
    monkeypatch.setenv(TOKEN, "s3cret")
    with ExitStack() as stack:
        yield lambda agent: _serve(stack, agent)


def _serve(stack: ExitStack, agent: Agent) -> str:
    listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    server = uvicorn.Server(uvicorn.Config(application(agent, "s3cret"), log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    stack.callback(thread.join, 10)
    stack.callback(setattr, server, "should_exit", True)
    return f"127.0.0.1:{listening.getsockname()[1]}"


class There:
    """An engine, the card that it is on, and the agent of its node."""

    def __init__(self, process: LoopbackProcess, card: Card, agent: Agent, address: str) -> None:
        self.process, self.card, self.agent = process, card, agent
        url = f"loopback://127.0.0.1:{process.port}?agent={address}"
        policy = Policy(deadlines_s={"release": 3.0}, settle_s=0.5, poll_s=0.05, room_wait_s=0.2)
        self.engine = Engine(OnGpu(parse(url)), name="e", policy=replace(policy, unprovable="warn"), observers=[card])

    async def drained(self) -> Engine:
        """The engine, about to be released."""
        await self.engine.connect()
        await self.engine.pause()
        await self.engine.drain()
        return self.engine


@pytest.fixture
def begin(serve: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., There]]:
    """Starts an engine with these variables on a stand-in card that only the agent of its node can ask."""
    with ExitStack() as stack:

        def start(environ: dict[str, str] | None = None, **card: Any) -> There:
            with monkeypatch.context() as started:
                for name, value in (environ or {}).items():
                    started.setenv(name, value)
                process = stack.enter_context(LoopbackProcess.start(weights_mib=16, kv_mib=16))
            on = Card(process.pid, **card)
            agent = Agent(threshold_gib=3.0, version="1", host=ThisHost(NvmlDriver(on.nvml)))
            return There(process, on, agent, serve(agent))

        yield start


async def test_the_ring_is_measured_where_the_engine_is(begin: Any) -> None:
    there = begin()
    engine = await there.drained()
    record = await engine.release(weights=disk(there.process))
    assert record.returned_bytes == WEIGHTS + KV
    assert record.verdicts["memory_returned"].figures["resident_bytes"] == CONTEXT
    assert record.verdicts["memory_returned"].grade is Grade.MEASURED
    there.card.join(TRAINER, 70 * GIB)
    with pytest.raises(GuardRefused) as refused:
        await engine.restore_weights()
    assert f"pid {TRAINER} (not visible from here) holds {70 * 1024} MiB" in refused.value.reasons["device_has_room"]
    await engine.aclose()


async def test_preload_on_blackwell_over_there_refuses_the_release(begin: Any) -> None:
    there = begin(**BLACKWELL)
    engine = await there.drained()
    with pytest.raises(GuardRefused, match=r"NVIDIA B200 \(sm_100\)") as refused:
        await engine.release(weights=disk(there.process))
    assert list(refused.value.reasons) == ["hook_mode_safe"]
    assert engine.state is State.DRAINED
    await engine.aclose()


async def test_a_hook_mode_that_is_safe_over_there_passes(begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    there = begin({"MILES_TMS_HOOK_MODE": "torch"}, **BLACKWELL)
    monkeypatch.setenv("MILES_TMS_HOOK_MODE", "preload")
    engine = await there.drained()
    await engine.release(weights=disk(there.process))
    await engine.aclose()


async def test_an_agent_without_the_hook_mode_question_leaves_it_unmeasurable(begin: Any) -> None:
    there = begin()
    del there.agent.questions["hook_mode"]
    engine = await there.drained()
    with pytest.raises(GuardRefused, match=r"unmeasurable: the agent at .* no question 'hook_mode'"):
        await engine.release(weights=disk(there.process))
    await engine.aclose()


async def doctor(there: There) -> dict[str, Any]:
    found = await examine(there.engine)
    await there.engine.aclose()
    return {finding.check: finding for finding in found}


async def test_the_doctor_asks_the_agent_how_the_engine_was_started(begin: Any) -> None:
    found = await doctor(begin())
    assert [str(finding) for finding in found.values() if finding.level != "ok"] == []
    assert found["allocator"].said == "no expandable segments"
    assert found["hook mode"].said == "hook mode preload is safe on NVIDIA H100 (sm_90)"


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
async def test_expandable_segments_over_there(begin: Any, name: str) -> None:
    there = begin({name: "expandable_segments:True"})
    finding = (await doctor(there))["allocator"]
    assert finding.level == "failure"
    assert f"pid {there.process.pid}" in finding.said
    assert f"{name}=expandable_segments:True" in finding.said


async def test_an_agent_without_the_process_env_question_is_a_warning(begin: Any) -> None:
    there = begin()
    del there.agent.questions["process_env"]
    finding = (await doctor(there))["allocator"]
    assert finding.level == "warning"
    assert "no question 'process_env'" in finding.said


async def test_no_other_variable_leaves_the_node(begin: Any, serve: Any) -> None:
    shareable = {
        "LD_PRELOAD": "/nowhere/lib.so",
        "PYTORCH_CUDA_ALLOC_CONF": "a:1",
        "PYTORCH_ALLOC_CONF": "a:2",
        "NCCL_GRAPH_REGISTER": "0",
        "TMS_INIT_ENABLE": "1",
    }
    there = begin({**shareable, "WANDB_API_KEY": "hunter2", "PYTORCH_X": "1", "NOT_TMS_X": "1"})
    node = RemoteNode(serve(there.agent))
    found = await node.process_env([by_pid(there.process.pid)], deadline_s=10)
    assert not isinstance(found, Unmeasurable)
    assert {each.pid: dict(each.environ) for each in found}[there.process.pid] == shareable


async def test_a_process_that_ended_over_there(begin: Any, serve: Any) -> None:
    there = begin()
    gone = by_pid(there.process.pid)
    there.process.kill()
    there.process.wait(10)
    found = await RemoteNode(serve(there.agent)).process_env([gone], deadline_s=10)
    assert isinstance(found, Unmeasurable)
    assert "no process of the engine is left" in found.reason
