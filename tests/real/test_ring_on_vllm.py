"""The ring on a real vLLM on a CPU. Its sleep frees nothing and answers 200: no release, and nothing is lost."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from vllm_lane import POLICY, VLLMLane, address, ask, fleet, outputs, source, unseen
from vllm_real import RealVLLM

from lifecycle import FleetError, Grade, Kept, State
from lifecycle.core.facts import Contents
from lifecycle.core.sources import Source
from lifecycle.core.verdicts import Refuted

BOTH = frozenset({"weights", "kv_cache"})


@pytest.fixture
def vllm(vllm_lane: VLLMLane) -> RealVLLM:
    """The running server. Each test leaves it serving the first checkpoint."""
    vllm_lane.expected(1)
    return vllm_lane.serve("plain")


async def asked(server: RealVLLM) -> list[list[int]]:
    """The greedy tokens after the prompts, without blocking the event loop."""
    return await asyncio.to_thread(outputs, server)


async def test_what_it_can_do(vllm: RealVLLM) -> None:
    async with fleet(vllm) as engines:
        engine = engines["e"]
        told = engine.capabilities
        assert (told.engine, told.version, told.device, told.ranks) == ("vLLM", "0.32.0", "cpu", 1)
        assert told.releasable == {BOTH}, "on a CPU it refuses to release KV alone"
        assert set(told.pause) == {"abort", "wait", "keep", "freeze"}
        assert told.update == {"disk", "live"}
        assert told.memory_saver is None, "whether a sleep frees anything only a release tells"
        assert any("frees nothing there" in note for note in told.notes)
        assert told.launch_source is not None
        assert told.launch_source.path == source(0).path
        assert engine.state is State.SERVING


@pytest.mark.parametrize(("where", "level"), [(Kept(), 1), (source(0), 2)], ids=["level 1", "level 2"])
async def test_a_sleep_that_frees_nothing_is_no_release(
    vllm: RealVLLM, vllm_lane: VLLMLane, where: Source, level: int
) -> None:
    async with fleet(vllm) as engines:
        engine = engines["e"]
        with pytest.raises(FleetError, match="memory_returned"):
            await engines.offload(weights=where)
        assert engine.state is State.RELEASED
        assert engine.facts.unmapped() == BOTH
        verdict = engine.conditions["memory_returned"].verdict
        assert isinstance(verdict, Refuted)
        assert verdict.figures["returned_bytes"] < verdict.figures["expected_bytes"] / 2
        assert not engine.memory_is_free
        assert ask(vllm, "/is_paused") == (200, {"is_paused": True})
        assert sleep_state(vllm) == {1: "weights_offloaded", 2: "discard_all"}[level]
        assert str(engine.facts.contents["weights"]) == ("garbage" if level == 2 else "kept(default)")
        await engines.onload()
        assert engine.state is State.SERVING
        assert sleep_state(vllm) == "awake"
    assert await asked(vllm) == vllm_lane.expected(0)


async def test_a_window_that_cannot_be_opened_leaves_it_serving(vllm: RealVLLM, vllm_lane: VLLMLane) -> None:
    async with fleet(vllm) as engines:
        with pytest.raises(FleetError, match="memory_returned"):
            async with engines.offloaded(weights=source(0)):
                raise AssertionError("its memory is not free")
        print(f"left {engines['e'].state}")
        await engines.onload()
        assert engines["e"].state is State.SERVING
    assert await asked(vllm) == vllm_lane.expected(0)


async def test_other_weights_and_back_by_the_whole_ring_where_its_memory_is_taken_unseen(
    vllm: RealVLLM, vllm_lane: VLLMLane
) -> None:
    async with unseen(vllm) as engines:
        for seed in (1, 0):
            async with engines.offloaded(weights=source(seed)):
                assert engines["e"].facts.unmapped() == BOTH
            assert engines["e"].state is State.SERVING
            assert engines["e"].facts.contents == {"weights": Contents("loaded", f"seed-{seed}")}
            assert ask(vllm, "/weight_info") == (200, {"weight_version": f"seed-{seed}"})
            assert await asked(vllm) == vllm_lane.expected(seed)
    assert vllm_lane.expected(0) != vllm_lane.expected(1)


async def test_other_weights_and_back_by_the_whole_ring_where_that_it_frees_nothing_is_accepted(
    vllm: RealVLLM, vllm_lane: VLLMLane
) -> None:
    accept = dict.fromkeys(("memory_returned", "tags_unmapped"), Grade.ASSERTED)
    async with fleet(vllm, replace(POLICY, accept=accept)) as engines:
        engine = engines["e"]
        for seed in (1, 0):
            async with engines.offloaded(weights=source(seed), mode="keep"):
                assert engine.state is State.RELEASED
                assert engine.facts.unmapped() == BOTH
                assert isinstance(engine.conditions["memory_returned"].verdict, Refuted)
                assert not engine.memory_is_free, "its device is not handed over"
            assert engine.state is State.SERVING
            assert await asked(vllm) == vllm_lane.expected(seed)


async def test_other_weights_and_back_in_place(vllm: RealVLLM, vllm_lane: VLLMLane) -> None:
    async with fleet(vllm) as engines:
        for seed in (1, 0):
            await engines.pause()
            await engines.drain()
            await engines.update_weights(source(seed))
            await engines.resume()
            assert await asked(vllm) == vllm_lane.expected(seed)


async def test_kv_alone_is_refused_and_not_asked_for(vllm: RealVLLM, vllm_lane: VLLMLane) -> None:
    """A real one on a CPU answers 500, and has KV down as asleep from then on; the wake of it is taken."""
    async with unseen(vllm) as engines:
        engine = engines["e"]
        with pytest.raises(FleetError, match="tags_releasable"):
            await engines.offload(["kv_cache"])
        assert engine.state is State.SERVING
        assert ask(vllm, "/is_sleeping") == (200, {"is_sleeping": False})
    ask(vllm, "/pause", method="POST")
    status, answer = ask(vllm, "/release_kv_cache_memory", method="POST")
    assert (status, "not supported on CPU" in answer["error"]["message"]) == (500, True)
    assert ask(vllm, "/wake_up?tags=kv_cache", method="POST") == (200, {"status": "awake", "tags": ["kv_cache"]})
    assert ask(vllm, "/is_sleeping") == (200, {"is_sleeping": False})
    assert await asked(vllm) == vllm_lane.expected(0)


def test_the_doctor_knows_the_version_and_that_a_sleep_may_free_nothing(vllm: RealVLLM) -> None:
    command = [sys.executable, "-m", "lifecycle", "doctor", address(vllm)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    assert re.search(r"ok +version +vLLM 0\.32\.0, which this adapter was measured on", said), said
    assert re.search(r"warning +memory saver +whether it has one is unknown; the first release will measure it", said)


def sleep_state(server: RealVLLM) -> str:
    """What the gauge of its front end says was asked of it last."""
    _, metrics = ask(server, "/metrics")
    [state] = [
        line.split('sleep_state="')[1].split('"')[0]
        for line in metrics.splitlines()
        if line.startswith("vllm:engine_sleep_state{") and line.endswith(" 1.0")
    ]
    return str(state)
