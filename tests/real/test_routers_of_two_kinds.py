"""Engines of two kinds behind one real router: each is removed and added by its own name, and none is confused."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from real_router import RealRouter
from router_env import PACKAGES

from lifecycle import Fleet, FromDisk, Policy, State

POLICY = Policy(residual_threshold_gib=0.25, settle_s=2.0, poll_s=0.05)
MIB = 64


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_STATE_DIR", str(tmp_path / "state"))


@pytest.mark.parametrize("kind", [kind for kind in PACKAGES if kind != "vllm-router"])
async def test_an_sglang_and_a_vllm_behind_one_router_go_the_whole_ring(kind: str) -> None:
    sizes: dict[str, Any] = {"weights_mib": MIB, "kv_mib": MIB}
    with ExitStack() as stack:
        sglang = stack.enter_context(LoopbackProcess.start(memory_saver=True, **sizes))
        vllm = stack.enter_context(LoopbackProcess.start(dialect="vllm:0.32", arguments=["--load-tracking"], **sizes))
        workers = [f"http://127.0.0.1:{each.port}" for each in (sglang, vllm)]
        router = stack.enter_context(RealRouter(kind, workers))
        tags = f"weights:{MIB << 20},kv_cache:{MIB << 20}"
        urls = [f"sglang://127.0.0.1:{sglang.port}?name=s", f"vllm://127.0.0.1:{vllm.port}?name=v&sizes={tags}"]
        assert await answered(router) == {200, 404}, "both are asked"
        async with Fleet.connect(urls, router=router.url(), policy=POLICY) as fleet:
            await fleet.pause("wait", engines=["v"])
            assert [each["url"] for each in router.listed()] == [workers[0]]
            assert await answered(router) == {200}, "SGLang alone is asked"
            await fleet.resume(engines=["v"])
            for _ in range(2):
                async with fleet.offloaded(weights=FromDisk(str(sglang.weights), "v0")):
                    assert router.listed() == []
                    assert all(each.memory_is_free for each in fleet)
                assert [each.state for each in fleet] == [State.SERVING] * 2
                assert sorted(each["url"] for each in router.listed()) == sorted(workers)
                assert await answered(router) == {200, 404}


async def answered(router: RealRouter, count: int = 4) -> set[int]:
    """The statuses of so many requests that SGLang answers with 200, and vLLM, which does not know them, with 404."""
    body = {"text": "hello", "sampling_params": {"max_new_tokens": 4}}
    found = [await asyncio.to_thread(router.ask, "POST", "/generate", body) for _ in range(count)]
    return {status for status, _ in found}
