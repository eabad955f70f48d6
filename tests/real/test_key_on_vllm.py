"""A real vLLM with an API key: it guards what generates, and nothing of the lifecycle."""

from __future__ import annotations

import asyncio

import pytest
from vllm_lane import KEY, VLLMLane, address, ask, fleet, outputs
from vllm_questions import COMPLETIONS, greedy
from vllm_real import RealVLLM

from lifecycle import ConfigurationError, Fleet, State


@pytest.fixture
def vllm(vllm_lane: VLLMLane) -> RealVLLM:
    """The running server. Each test leaves it serving."""
    return vllm_lane.serve("keyed")


def test_the_key_guards_generation_alone(vllm: RealVLLM) -> None:
    assert ask(vllm, "/v1/models")[0] == ask(vllm, COMPLETIONS, greedy("hello"))[0] == 401
    assert ask(vllm, COMPLETIONS, greedy("hello"), key="wrong")[0] == 401
    assert ask(vllm, COMPLETIONS, greedy("hello"), key=KEY)[0] == 200
    open_to_all = ["/is_paused", "/server_info", "/load", "/metrics", "/weight_info", "/health"]
    assert {path: ask(vllm, path)[0] for path in open_to_all} == dict.fromkeys(open_to_all, 200)
    for path in ("/pause", "/resume"):
        assert ask(vllm, path, method="POST")[0] == 200


async def test_without_the_key_it_is_not_driven(vllm: RealVLLM) -> None:
    with pytest.raises(ConfigurationError, match="api_key_env=NAME"):
        async with Fleet.connect([address(vllm)]):
            pass
    assert ask(vllm, "/is_paused") == (200, {"is_paused": False})


async def test_with_the_key_it_is(vllm: RealVLLM, monkeypatch: pytest.MonkeyPatch, vllm_lane: VLLMLane) -> None:
    monkeypatch.setenv("VLLM_KEY_OF_THE_TEST", KEY)
    async with fleet(vllm, api_key_env="VLLM_KEY_OF_THE_TEST") as engines:
        await engines.pause()
        await engines.drain()
        await engines.resume()
        assert engines["e"].state is State.SERVING
    assert await asyncio.to_thread(outputs, vllm, key=KEY) == vllm_lane.outputs[1]
