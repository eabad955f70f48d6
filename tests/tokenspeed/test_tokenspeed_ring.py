"""The whole ring on loopback engines that speak tokenspeed, alone and in one fleet with SGLang and vLLM."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess, make_weights

from lifecycle import Contents, Engine, Fleet, FleetError, FromDisk, Kept, Policy, Pushed, State
from lifecycle.core.sources import PushTarget
from lifecycle.core.verdicts import Proved
from lifecycle.fleet.registry import adapter_for
from lifecycle.nodes.address import parse

sys.path.append(str(Path(__file__).parents[1] / "routers"))

from recorded import RecordedRouter

MIB = 72
POLICY = Policy(residual_threshold_gib=0.15, settle_s=1.0, poll_s=0.02, pause_mode="wait")

pytestmark = pytest.mark.slow  # each starts an engine and moves real memory


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with version 2 of the weights."""
    make_weights(tmp_path / "2.safetensors", seed=7, weights_mib=MIB)
    return tmp_path


@pytest.fixture
def process(store: Path) -> Iterator[LoopbackProcess]:
    """An engine that loads from the store, and rebalances experts for half a second."""
    arguments = ["--step-delay-s", "0.005", "--weight-store", str(store), "--rebalance-s", "0.5"]
    with LoopbackProcess.start(weights_mib=MIB, kv_mib=MIB, dialect="tokenspeed", arguments=arguments) as engine:
        yield engine


def url(process: LoopbackProcess, name: str = "name=e&") -> str:
    return f"tokenspeed://127.0.0.1:{process.port}?{name}sizes=weights:{MIB << 20},kv_cache:{MIB << 20}"


def post(process: LoopbackProcess, path: str, body: dict[str, Any]) -> Any:
    """The JSON of an answer."""
    request = urllib.request.Request(process.url + path, json.dumps(body).encode(), method="POST")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def generate(process: LoopbackProcess, text: str, tokens: int = 8) -> list[int]:
    """The greedy token ids, by tokenspeed's endpoint, which SGLang has too."""
    sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
    ids: list[int] = post(process, "/generate", {"text": text, "sampling_params": sampling})["output_ids"]
    return ids


def complete(process: LoopbackProcess, text: str, tokens: int = 8) -> list[int]:
    """The same, by vLLM's."""
    body = {"prompt": text, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    ids: list[int] = post(process, "/v1/completions", body)["choices"][0]["token_ids"]
    return ids


async def test_requests_in_flight_end_whole_and_late_ones_wait(process: LoopbackProcess) -> None:
    before = generate(process, "hello", 120)
    async with Fleet.connect([url(process)], policy=POLICY) as fleet:
        asked = [asyncio.create_task(asyncio.to_thread(generate, process, "hello", 120)) for _ in range(4)]
        await asyncio.sleep(0.2)
        (released,) = await fleet.offload(weights=Kept())
        assert isinstance(released.verdicts["memory_returned"], Proved)
        assert await asyncio.gather(*asked) == [before] * 4
        late = asyncio.create_task(asyncio.to_thread(generate, process, "hello", 120))
        await asyncio.sleep(0.2)
        assert not late.done()
        await fleet.onload()
        assert fleet["e"].state is State.SERVING
        assert await late == before


async def test_each_tag_alone(process: LoopbackProcess) -> None:
    before = generate(process, "hello")
    async with Fleet.connect([url(process)], policy=POLICY) as fleet:
        for tag in ("kv_cache", "weights"):
            await fleet.offload([tag], weights=Kept())
            assert fleet["e"].facts.unmapped() == {tag}
            await fleet.onload()
            assert generate(process, "hello") == before


async def test_a_push_from_its_store(process: LoopbackProcess) -> None:
    before = generate(process, "hello")

    async def load(engines: Sequence[PushTarget]) -> None:
        for engine in engines:
            await engine.push("mooncake", version=2)

    async with Fleet.connect([url(process)], policy=POLICY) as fleet:
        await fleet.offload(weights=Pushed(load, "step-2"))
        await fleet.onload()
        assert fleet["e"].facts.contents == {"weights": Contents("loaded", "step-2")}
    assert generate(process, "hello") != before
    async with Fleet.connect([url(process)], policy=POLICY) as fleet:
        assert fleet["e"].facts.contents["weights"].version == "step-2"


async def test_weights_from_disk_are_refused_and_those_that_are_kept_serve(process: LoopbackProcess) -> None:
    before = generate(process, "hello")
    async with Fleet.connect([url(process)], policy=POLICY) as fleet:
        await fleet.offload(weights=Kept())
        with pytest.raises(FleetError, match=r"cannot load weights from .*it can: push"):
            await fleet.onload(weights=FromDisk("/checkpoint", "step-2"))
        await fleet.onload(weights=Kept())
    assert generate(process, "hello") == before


async def test_a_release_is_refused_while_experts_are_rebalanced(process: LoopbackProcess) -> None:
    policy = Policy(residual_threshold_gib=0.15, settle_s=1.0, poll_s=0.02, pause_mode="wait", on_failure="hold")
    async with Fleet.connect([url(process)], policy=policy) as fleet:
        engine = fleet["e"]
        await engine.pause()
        await engine.drain()
        post(process, "/rebalance_experts", {})
        with pytest.raises(Exception, match="an expert rebalance is in progress"):
            await engine.release(weights=Kept())
        assert engine.state is State.DRAINED
        assert engine.facts.unmapped() == frozenset()
        await asyncio.sleep(0.6)  # for as long as it was told to take
        await engine.release(weights=Kept())
        await fleet.onload()


async def test_an_abort_of_all_by_somebody_else_is_found(process: LoopbackProcess) -> None:
    """It opens an engine that was paused. Nothing reports that: the requests that run then do."""
    async with Fleet.connect([url(process)], policy=POLICY) as fleet:
        engine = fleet["e"]
        await engine.pause()
        await engine.drain()
        post(process, "/abort_request", {"abort_all": True})
        running = asyncio.create_task(asyncio.to_thread(generate, process, "hello", 400))
        await asyncio.sleep(0.2)
        with pytest.raises(Exception, match="requests run, and it was left idle and closed"):
            await engine.release(weights=Kept())
        assert engine.state is not State.RELEASED
        await running


async def test_a_driver_without_a_store_claims_nothing_of_a_paused_engine(process: LoopbackProcess) -> None:
    async with Fleet.connect([url(process)], policy=POLICY) as fleet:
        await fleet["e"].pause()
        newcomer = Engine(adapter_for(parse(url(process, ""))), name="n", policy=POLICY, lease=None)
        await newcomer.connect()
        assert newcomer.state is State.FAILED
        assert newcomer.facts.admission is None
        await newcomer.aclose()
        await fleet["e"].resume()


async def test_a_cycle_of_three_kinds_of_engine_with_requests_in_flight(tmp_path: Path) -> None:
    """Every request ends whole: by `wait` those that run do, and those that come later wait for the onload."""
    delay = ["--step-delay-s", "0.005"]
    kinds: dict[str, dict[str, Any]] = {
        "sglang": {"arguments": [*delay, "--abort-poll-s", "0.05"], "weights_backup": True},
        "vllm": {"dialect": "vllm:0.32", "arguments": delay},
        "tokenspeed": {"dialect": "tokenspeed:0.1.1", "arguments": delay},
    }
    engines = {}
    try:
        for kind, how in kinds.items():
            engines[kind] = await LoopbackProcess.astart(weights_mib=MIB, kv_mib=MIB, **how)
        ask = {"sglang": generate, "vllm": complete, "tokenspeed": generate}
        before = {kind: ask[kind](engine, "hello", 100) for kind, engine in engines.items()}
        async with RecordedRouter("sglang-router") as router:
            for engine in engines.values():
                router.has(engine.url)
            asked = {
                kind: [asyncio.create_task(asyncio.to_thread(ask[kind], engine, "hello", 100)) for _ in range(3)]
                for kind, engine in engines.items()
            }
            await asyncio.sleep(0.3)
            urls = [f"{kind}://127.0.0.1:{engine.port}?name={kind}" for kind, engine in engines.items()]
            options = ["--mode", "wait", "--threshold-gib", "0.2", "--times", "1", "--router", router.url()]
            command = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "lifecycle", "cycle", *urls, *options, "--json"),
                env={**os.environ, "LIFECYCLE_STATE_DIR": str(tmp_path)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            out, err = await asyncio.wait_for(command.communicate(), 150)
            assert command.returncode == 0, (out.decode()[-2000:], err.decode()[-2000:])
            for kind, tasks in asked.items():
                assert await asyncio.gather(*tasks) == [before[kind]] * 3
            assert sorted(router.open()) == sorted(engine.url for engine in engines.values())
        for kind, engine in engines.items():
            assert ask[kind](engine, "hello", 100) == before[kind]
    finally:
        for engine in engines.values():
            engine.kill()
