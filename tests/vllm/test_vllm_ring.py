"""The whole ring on loopback engines that speak vLLM: what is released, what comes back, and what clients get."""

from __future__ import annotations

import asyncio
import base64
import json
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from lifecycle.adapters.loopback import LoopbackProcess, make_weights
from safetensors.numpy import load, save

from lifecycle import (
    ConfigurationError,
    Contents,
    Fleet,
    FleetError,
    FromDisk,
    Grade,
    GuardRefused,
    Kept,
    Policy,
    Pushed,
    State,
)
from lifecycle.core.facts import GARBAGE
from lifecycle.core.sources import PushTarget
from lifecycle.core.verdicts import Proved, Refuted

MIB = 72
POLICY = Policy(residual_threshold_gib=0.2, settle_s=1.0, poll_s=0.02)
#: Those that say nothing of what they did, and the last, are in the slow lane.
VERSIONS = ["0.32", *(pytest.param(version, marks=pytest.mark.slow) for version in ("0.24", "0.30", "0.33"))]


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> FromDisk:
    """Other weights than those that the engines start with."""
    path = tmp_path_factory.mktemp("checkpoint") / "step-2.safetensors"
    make_weights(path, seed=7, weights_mib=MIB)
    return FromDisk(str(path), "step-2")


@pytest.fixture(params=["0.32"])
def process(request: pytest.FixtureRequest) -> Iterator[LoopbackProcess]:
    """An engine of this version; with a pair, started with these options."""
    version, options = request.param if isinstance(request.param, tuple) else (request.param, {})
    chosen = {"arguments": ["--step-delay-s", "0.005"], **options}
    with LoopbackProcess.start(weights_mib=MIB, kv_mib=MIB, dialect=f"vllm:{version}", **chosen) as engine:
        yield engine


def url(process: LoopbackProcess) -> str:
    sizes = f"weights:{MIB << 20},kv_cache:{MIB << 20}"
    return f"vllm://127.0.0.1:{process.port}?name=e&sizes={sizes}"


def generate(process: LoopbackProcess, text: str, tokens: int = 8) -> tuple[str, list[int]]:
    """Why a greedy completion ended, and its token ids."""
    body = {"prompt": text, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    request = urllib.request.Request(process.url + "/v1/completions", json.dumps(body).encode(), method="POST")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        choice = json.loads(answer.read())["choices"][0]
    return choice["finish_reason"], choice["token_ids"]


@pytest.mark.parametrize("process", VERSIONS, indirect=True)
async def test_weights_that_are_kept_come_back_as_they_were(process: LoopbackProcess) -> None:
    before = generate(process, "hello")
    async with Fleet.connect([url(process)], policy=POLICY) as fleet:
        (released,) = await fleet.offload(weights=Kept())
        assert isinstance(released.verdicts["memory_returned"], Proved)
        assert fleet["e"].facts.contents["weights"].origin == "kept"
        await fleet.onload()
        assert fleet["e"].state is State.SERVING
    assert generate(process, "hello") == before


@pytest.mark.parametrize("process", VERSIONS, indirect=True)
async def test_weights_that_are_replaced_are_discarded_and_loaded(process: LoopbackProcess, loaded: FromDisk) -> None:
    before = generate(process, "hello")
    async with Fleet.connect([url(process)], policy=POLICY) as fleet:
        for source in (loaded, FromDisk(str(process.weights), "step-1")):
            (released,) = await fleet.offload(weights=source)
            assert isinstance(released.verdicts["memory_returned"], Proved)
            assert str(fleet["e"].facts.contents["weights"]) == "garbage"
            await fleet.onload()
            assert fleet["e"].facts.contents == {"weights": Contents("loaded", source.version)}
            assert (generate(process, "hello") == before) is (source is not loaded)


@pytest.mark.parametrize("process", ["0.32", pytest.param("0.33", marks=pytest.mark.slow)], indirect=True)
async def test_kv_alone(process: LoopbackProcess) -> None:
    before = generate(process, "hello")
    async with Fleet.connect([url(process)], policy=POLICY) as fleet:
        await fleet.offload(["kv_cache"])
        assert fleet["e"].facts.unmapped() == {"kv_cache"}
        await fleet.onload()
    assert generate(process, "hello") == before


@pytest.mark.parametrize("process", ["0.30"], indirect=True)
@pytest.mark.slow
async def test_kv_alone_is_refused_where_there_is_no_endpoint(process: LoopbackProcess) -> None:
    async with Fleet.connect([url(process)], policy=POLICY) as fleet:
        with pytest.raises(FleetError, match="tags_releasable") as refused:
            await fleet.offload(["kv_cache"])
        assert isinstance(refused.value.exceptions[0], GuardRefused)
        assert fleet["e"].state is State.SERVING


@pytest.mark.slow
@pytest.mark.parametrize("process", VERSIONS, indirect=True)
async def test_requests_that_are_kept_all_end_with_their_tokens(process: LoopbackProcess) -> None:
    prompts = [f"prompt {number}" for number in range(6)]
    whole = [generate(process, prompt, 120) for prompt in prompts]
    async with Fleet.connect([url(process)], policy=POLICY) as fleet:
        asked = [asyncio.create_task(asyncio.to_thread(generate, process, prompt, 120)) for prompt in prompts]
        await asyncio.sleep(0.1)
        await fleet.offload(weights=Kept(), mode="keep")
        assert not any(task.done() for task in asked)
        await fleet.onload()
        assert await asyncio.gather(*asked) == whole


@pytest.mark.slow
async def test_the_ring_can_be_gone_again_from_each_half_of_an_onload(
    process: LoopbackProcess, loaded: FromDisk
) -> None:
    async with Fleet.connect([url(process)], policy=POLICY) as fleet:
        engine = fleet["e"]
        await fleet.offload(weights=loaded)
        await engine.restore_weights()
        await engine.release(weights=loaded)
        assert engine.facts.unmapped() == {"weights", "kv_cache"}
        await engine.restore_weights()
        await engine.update_weights(loaded)
        await engine.restore_kv()
        assert (engine.state, engine.facts.admission, engine.facts.running) == (State.KV_RESTORED, "closed", 0)
        await engine.release(weights=Kept())
        await fleet.onload()
        assert engine.facts.contents["weights"].version == "step-2"


@pytest.mark.slow
async def test_an_update_in_place_and_one_under_frozen_requests(process: LoopbackProcess, loaded: FromDisk) -> None:
    before = generate(process, "hello")
    async with Fleet.connect([url(process)], policy=POLICY) as fleet:
        engine = fleet["e"]
        await engine.pause()
        await engine.drain()
        await engine.update_weights(loaded)
        await engine.resume()
        assert generate(process, "hello") != before
        asked = asyncio.create_task(asyncio.to_thread(generate, process, "once upon a time", 100))
        await asyncio.sleep(0.1)
        await engine.pause("freeze")
        await engine.update_weights(FromDisk(str(process.weights), "step-1"))
        await engine.resume()
        reason, ids = await asked
        assert (reason, len(ids)) == ("length", 100)


@pytest.mark.slow
async def test_a_reload_that_fails_leaves_an_engine_that_does_not_serve_until_it_has_weights(
    process: LoopbackProcess, loaded: FromDisk
) -> None:
    async with Fleet.connect([url(process)], policy=POLICY) as fleet:
        engine = fleet["e"]
        await fleet.offload(weights=loaded)
        await engine.restore_weights()
        with pytest.raises(Exception, match="half replaced"):
            await engine.update_weights(FromDisk("/no/such/checkpoint", "nowhere"))
        assert engine.facts.contents == {"weights": None}
        with pytest.raises(GuardRefused, match="weights_valid"):
            await engine.restore_kv()
        await fleet.onload(weights=loaded)
        assert engine.state is State.SERVING
    assert generate(process, "hello")[0] == "length"


def tensors(source: FromDisk) -> list[str]:
    """The weights of a checkpoint as the dialect takes them: safetensors in base64, in two halves."""
    whole = sorted(load(Path(source.path).read_bytes()).items())
    halves = (whole[: len(whole) // 2], whole[len(whole) // 2 :])
    return [base64.b64encode(save(dict(half))).decode() for half in halves]


@pytest.mark.slow
@pytest.mark.parametrize("process", [("0.32", {"arguments": ["--weight-transfer"]})], indirect=True)
async def test_a_push_that_fails_is_ended_and_the_next_one_is_served(
    process: LoopbackProcess, loaded: FromDisk
) -> None:
    before, halves = generate(process, "hello"), tensors(loaded)

    async def breaks(engines: Sequence[PushTarget]) -> None:
        for engine in engines:
            await engine.push("init", init_info={})
            await engine.push("update", update_info={"safetensors": halves[:1]})
        raise RuntimeError("the trainer failed half-way")

    async def works(engines: Sequence[PushTarget]) -> None:
        for engine in engines:
            for half in halves:
                await engine.push("update", update_info={"safetensors": [half]})

    async with Fleet.connect([url(process)], policy=POLICY) as fleet:
        engine = fleet["e"]
        await fleet.offload(weights=Pushed(breaks, "pushed-1"))
        with pytest.raises(FleetError, match="half-way"):
            await fleet.onload()
        assert engine.facts.contents["weights"] in (None, GARBAGE)
        assert engine.state is not State.SERVING
        await fleet.onload(weights=Pushed(works, "pushed-2"))
        assert engine.facts.contents == {"weights": Contents("loaded", "pushed-2")}
    assert generate(process, "hello") != before


CPU = ("0.32", {"cpu_like": True})


@pytest.mark.parametrize("process", [CPU], indirect=True)
async def test_a_sleep_that_frees_nothing_is_no_release_and_nothing_is_lost(process: LoopbackProcess) -> None:
    before = generate(process, "hello")
    policy = Policy(
        residual_threshold_gib=0.05, settle_s=1.0, poll_s=0.02, deadlines_s={"release": 2}, on_failure="hold"
    )
    async with Fleet.connect([url(process)], policy=policy) as fleet:
        engine = fleet["e"]
        assert engine.capabilities.memory_saver is None
        with pytest.raises(FleetError, match="memory_returned"):
            await fleet.offload(weights=Kept())
        assert engine.state is State.RELEASED
        assert isinstance(engine.conditions["memory_returned"].verdict, Refuted)
        assert not engine.memory_is_free
        await fleet.onload()
        assert engine.state is State.SERVING
    assert generate(process, "hello") == before


@pytest.mark.parametrize("process", [CPU], indirect=True)
@pytest.mark.slow
async def test_where_that_is_accepted_it_goes_the_whole_ring(process: LoopbackProcess, loaded: FromDisk) -> None:
    accept = dict.fromkeys(("memory_returned", "tags_unmapped"), Grade.ASSERTED)
    async with Fleet.connect(
        [url(process)], policy=replace(POLICY, accept=accept, residual_threshold_gib=0.05)
    ) as fleet:
        engine, before = fleet["e"], generate(process, "hello")
        for source in (loaded, FromDisk(str(process.weights), "step-1")):
            async with fleet.offloaded(weights=source):
                assert engine.state is State.RELEASED
                assert isinstance(engine.conditions["memory_returned"].verdict, Refuted)
                assert not engine.memory_is_free, "its device is not handed over"
            assert engine.state is State.SERVING
            assert (generate(process, "hello") == before) is (source is not loaded)


@pytest.mark.parametrize("process", [("0.32", {"arguments": ["--no-dev-mode"]})], indirect=True)
@pytest.mark.slow
async def test_without_its_development_mode(process: LoopbackProcess) -> None:
    with pytest.raises(ConfigurationError, match="VLLM_SERVER_DEV_MODE=1"):
        async with Fleet.connect([url(process)], policy=POLICY):
            pass


@pytest.mark.slow
async def test_a_killed_server_is_gone(process: LoopbackProcess) -> None:
    async with Fleet.connect([url(process)], policy=POLICY) as fleet:
        await fleet.offload(weights=Kept())
        process.kill()
        assert await fleet["e"].verify() is State.GONE
