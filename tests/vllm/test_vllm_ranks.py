"""Data-parallel ranks behind one vLLM server, or each behind its own: which differ, and which have ended."""

from __future__ import annotations

import re
import time
import urllib.request
from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from lifecycle.adapters.vllm import VLLMAdapter
from vllm_driving import closed, driven
from vllm_server import RANKS_DISAGREE, RecordedServer, config

from lifecycle import Fact, Fleet, FleetError, Kept, Policy, State
from lifecycle.core.verdicts import Pending, Proved
from lifecycle.nodes.address import parse

MIB = 72
POLICY = Policy(residual_threshold_gib=0.2, settle_s=1.0, poll_s=0.02)
EVERYTHING = frozenset({Fact.BOOT, Fact.ADMISSION, Fact.CLOSED, Fact.RUNNING, Fact.MAPPED, Fact.CONTENTS})


async def test_ranks_that_disagree() -> None:
    async with driven() as (server, adapter):
        server.script("GET /is_paused", RANKS_DISAGREE)
        seen = await adapter.observe(EVERYTHING, deadline_s=5)
        assert (seen.admission, seen.alive) == (None, True)
        assert "its data-parallel ranks disagree" in seen.disagreement
        assert "[True, False]" in seen.disagreement
        assert await adapter.barrier(deadline_s=5), "all of them have answered"
        assert isinstance(await adapter.prove_idle(closed(), deadline_s=5), Pending)
        assert not server.sent("/fault_tolerance/status"), "it was not started with it"


@pytest.mark.parametrize(("version", "says"), [("0.31.0", False), ("0.32.0", True)])
@pytest.mark.parametrize("layout", ["its own", "another's", "on one node"])
async def test_that_the_first_of_several_ranks_is_paused_says_nothing_of_the_others(
    version: str, says: bool, layout: str
) -> None:
    settings = config()
    settings["parallel_config"] |= {
        "data_parallel_size": 4,
        "data_parallel_size_local": 2 if layout == "on one node" else 1,
        "data_parallel_external_lb": layout == "another's",
        "data_parallel_hybrid_lb": layout == "on one node",
    }
    async with driven(version, config=settings) as (server, adapter):
        assert adapter._known().ranks == {"its own": 4, "another's": 1, "on one node": 2}[layout]
        assert (await adapter.observe(EVERYTHING, deadline_s=5)).admission == "open", "one that admits is enough"
        server.paused = "abort"
        told = "closed" if says or layout == "another's" else None
        assert (await adapter.observe(EVERYTHING, deadline_s=5)).admission == told
        assert isinstance(await adapter.prove_idle(closed(), deadline_s=5), Proved), "a pause is sent to all of them"


def tolerant() -> dict[str, Any]:
    """The configuration of a server with --enable-fault-tolerance, which has one rank and an external balancer."""
    settings = config()
    settings["parallel_config"] |= {
        "data_parallel_size": 2,
        "data_parallel_external_lb": True,
        "enable_fault_tolerance": True,
    }
    return settings


def status(*rows: dict[str, Any]) -> tuple[int, Any]:
    """An answer of `/fault_tolerance/status`. Source: vllm 0.32.0, v1/engine/core_client.py, get_status; read."""
    return 200, {"schema_version": 1, "total_engines": len(rows), "engines": list(rows)}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": 1, "status": "dead"}, "engine 1 is dead: a worker of it has ended"),
        (
            {"id": 1, "status": "unhealthy", "fault_info": "RuntimeError"},
            r"engine 1 is unhealthy \(RuntimeError\): it takes no call until it is repaired",
        ),
        ({"id": 1, "status": "odd"}, "engine 1 is odd"),
        ({"id": 1}, "engine 1 is None"),
    ],
    ids=["dead", "unhealthy", "odd", "none"],
)
async def test_a_broken_rank_is_silence_and_nothing_else_is_asked(row: dict[str, Any], said: str) -> None:
    async with driven("0.30.0", config=tolerant()) as (server, adapter):
        server.script("GET /fault_tolerance/status", status({"id": 0, "status": "healthy"}))
        assert (await adapter.observe(EVERYTHING, deadline_s=5)).alive is True
        assert await adapter.barrier(deadline_s=5)
        server.script("GET /fault_tolerance/status", status({"id": 0, "status": "healthy"}, row))
        server.seen.clear()
        seen = await adapter.observe(EVERYTHING, deadline_s=5)
        assert (seen.boot, seen.alive, seen.admission) == (None, None, None)
        assert re.match(said, seen.detail)
        assert not await adapter.barrier(deadline_s=5), "a repair lets it take up what was sent"
        assert {each.path for each in server.seen} == {"/fault_tolerance/status"}


async def test_a_broken_rank_is_connected_to_at_once() -> None:
    broken = status({"id": 0, "status": "unhealthy", "fault_info": "RuntimeError"})
    async with RecordedServer("0.32.0", config=tolerant()) as server:
        server.script("GET /fault_tolerance/status", broken)
        server.hangs = {"/weight_info", "/is_paused"}
        adapter = VLLMAdapter(parse(server.url))
        started_s = time.monotonic()
        assert (await adapter.connect(deadline_s=20)).launch_source is None, "what it has loaded is not known"
        assert "unhealthy" in (await adapter.observe(EVERYTHING, deadline_s=20)).detail
        assert time.monotonic() - started_s < 10
        await adapter.aclose()


@pytest.mark.parametrize(
    "odd", [(404, {"detail": "Not Found"}), (200, []), (200, {"engines": 3}), (200, {}), (500, b"")]
)
async def test_a_server_that_tells_no_faults_is_as_one_without(odd: tuple[int, Any]) -> None:
    async with driven(config=tolerant()) as (server, adapter):
        server.script("GET /fault_tolerance/status", odd)
        assert (await adapter.observe(EVERYTHING, deadline_s=5)).alive is True


# on loopback engines that speak vLLM


def url(process: LoopbackProcess, ranks: int = 1) -> str:
    size = (MIB << 20) // ranks
    return f"vllm://127.0.0.1:{process.port}?name=e&sizes=weights:{size},kv_cache:{size}"


def without_fault(process: LoopbackProcess) -> None:
    """Its calls are what they are from here on."""
    urllib.request.urlopen(process.url + "/_fault", b'{"pause": null}', timeout=10).close()


@pytest.mark.slow
async def test_a_rank_that_ends_in_a_release_leaves_nothing_that_is_free() -> None:
    options = ["--enable-fault-tolerance", "--recovery-timeout-s", "6", "--fault", "release=end_rank:1"]
    with LoopbackProcess.start(weights_mib=MIB, kv_mib=MIB, ranks=2, dialect="vllm:0.32", arguments=options) as process:
        async with Fleet.connect([url(process, 2)], policy=POLICY) as fleet:
            with pytest.raises(FleetError, match="engine 0 is dead: a worker of it has ended"):
                await fleet.offload(weights=Kept(), deadline_s=4)
            engine = fleet["e"]
            assert engine.state is State.FAILED
            assert not engine.memory_is_free, "the other rank holds its own"
            assert (await engine.recover(deadline_s=1)).state is State.FAILED
            assert process.wait(20) == 0
            assert (await engine.recover()).state is State.GONE
            assert engine.memory_is_free


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.30", "0.32"])
async def test_a_pause_that_one_rank_missed(version: str) -> None:
    options = ["--data-parallel-size", "2", "--fault", "pause=stuck:1"]
    with LoopbackProcess.start(
        weights_mib=MIB, kv_mib=MIB, allow_faults=True, dialect=f"vllm:{version}", arguments=options
    ) as process:
        async with Fleet.connect([url(process)], policy=POLICY) as fleet:
            engine = fleet["e"]
            if version == "0.32":
                with pytest.raises(FleetError, match=r"its data-parallel ranks disagree.*\[True, False\]"):
                    await fleet.pause(deadline_s=5)
                assert engine.state is State.FAILED
                assert engine.facts.admission is None
                without_fault(process)
                assert (await engine.recover()).state is State.PAUSED
            else:  # it says nothing of that
                await fleet.pause(deadline_s=5)
            await engine.resume()
            assert engine.state is State.SERVING
