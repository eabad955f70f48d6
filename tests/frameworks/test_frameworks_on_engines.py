"""miles and rlix over real engines: requests that go on afterwards, and memory that is measured from outside."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import Fleet, FleetError, FromDisk, Policy, State
from lifecycle.frameworks.miles import RolloutServer
from lifecycle.frameworks.rlix import RolloutManager

pytestmark = pytest.mark.slow

GIB = 1 << 30
POLICY = Policy(residual_threshold_gib=0.045, visible_bytes=4 << 20, settle_s=1.0, poll_s=0.02)
SMALL: dict[str, Any] = {"weights_mib": 32, "kv_mib": 24}


def url(process: LoopbackProcess, name: str) -> str:
    return f"loopback://127.0.0.1:{process.port}?name={name}"


def tokens_of(process: LoopbackProcess, count: int) -> int:
    """How many tokens a request got that asked for so many."""
    body = {"text": "once", "sampling_params": {"max_new_tokens": count, "ignore_eos": True}}
    request = urllib.request.Request(
        f"{process.url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60.0) as answer:
        return len(json.load(answer)["output_ids"])


async def until_it_runs(process: LoopbackProcess) -> None:
    """A request runs in the engine."""

    def running() -> int:
        with urllib.request.urlopen(f"{process.url}/v1/loads", timeout=10.0) as answer:
            return int(sum(each["num_running_reqs"] for each in json.load(answer)["loads"]))

    async with asyncio.timeout(20):
        for _ in iter(lambda: running(), 1):
            await asyncio.sleep(0.01)


async def test_requests_in_flight_go_on_after_a_retract_and_are_cut_by_an_abort() -> None:
    """slime's pause sends an empty body, which aborts: what was in flight is dropped, and not drained."""
    arguments = ("--step-delay-s", "0.01", "--abort-poll-s", "0.02")
    with LoopbackProcess.start(**SMALL, arguments=arguments) as process:
        home = FromDisk(str(process.weights), "v1")
        async with Fleet.connect([url(process, "e")], policy=POLICY, lease=None) as fleet:
            for mode, ends in (("retract", 150), ("abort", None)):
                server = RolloutServer(fleet, mode=mode)  # type: ignore[arg-type]
                request = asyncio.create_task(asyncio.to_thread(tokens_of, process, 150))
                await until_it_runs(process)
                await server.offload(weights=home)
                assert fleet["e"].memory_is_free
                await server.onload()
                assert fleet["e"].state is State.SERVING
                got = await request
                assert got == 150 if ends else got < 150, mode


async def test_the_gate_measures_the_process_from_outside_and_the_engines_serve_again() -> None:
    with (
        LoopbackProcess.start(**SMALL) as good,
        LoopbackProcess.start(**SMALL, faults=["release=leak:40"]) as leaks,
    ):
        sources = FromDisk(str(good.weights), "v1")
        urls = [url(good, "good"), url(leaks, "leaks")]
        async with Fleet.connect(urls, policy=POLICY, lease=None) as fleet:
            manager = RolloutManager(fleet)
            assert await manager.shrink_engines([0], weights=sources) == [0]
            (kept,) = (await manager.check_residual([0])).values()
            assert 0 < kept < 0.045
            with pytest.raises(FleetError, match=r"good.*exceeds"):
                await manager.check_residual([0], post_sleep_vram_threshold_gb=kept - 2 / 1024)
            assert await manager.expand_engines([0]) == [0]
            with pytest.raises(FleetError, match="leaks: release failed") as failed:
                await manager.resize_infer([0, 1], [], weights=sources, deadline_s=2.0)
            assert "they serve again, and keep their devices: leaks" in failed.value.__notes__
            assert await manager.get_engine_states() == {0: "active", 1: "active"}
