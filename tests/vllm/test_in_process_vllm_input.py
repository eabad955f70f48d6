"""A vLLM in this process that cannot be driven: what is wrong with it or with the options, and what to do."""

from __future__ import annotations

import asyncio
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
from lifecycle.adapters.vllm_in_process import InProcessVLLM
from vllm_stand_in import Core, FakeAsyncLLM, engine_of, installed

from lifecycle import ConfigurationError


async def test_an_object_that_is_neither(vllm: SimpleNamespace) -> None:
    with pytest.raises(ConfigurationError, match="give an AsyncLLM or an LLM of vLLM, not dict"):
        InProcessVLLM({}, name="e")


def test_an_async_llm_whose_loop_is_not_known(
    core: Core, process: subprocess.Popen[bytes], vllm: SimpleNamespace
) -> None:
    with pytest.raises(ConfigurationError, match="construct this in a coroutine on that loop, or give loop="):
        InProcessVLLM(FakeAsyncLLM(core, process), name="e")


async def test_the_loop_of_its_output_handler_is_its_home(
    core: Core, process: subprocess.Popen[bytes], vllm: SimpleNamespace
) -> None:
    llm, loop = FakeAsyncLLM(core, process), asyncio.new_event_loop()
    llm.output_handler = SimpleNamespace(get_loop=lambda: loop)
    with pytest.raises(ConfigurationError, match=r"the event loop of .* does not run"):
        await InProcessVLLM(llm, name="e").connect(deadline_s=5)
    loop.close()


async def test_a_loop_that_is_blocked(core: Core, process: subprocess.Popen[bytes], vllm: SimpleNamespace) -> None:
    core.holds = lambda name: True
    with pytest.raises(ConfigurationError, match=r"did not answer in 0.2 s; its event loop or thread may be blocked"):
        await engine_of(FakeAsyncLLM(core, process)).adapter.connect(deadline_s=0.2)
    core.holds = lambda name: False


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"sizes": {"weights": 0}}, "sizes must be bytes of weights and kv_cache"),
        ({"sizes": {"cuda_graph": 1}}, "sizes must be bytes of weights and kv_cache"),
        ({"unknown_version": "perhaps"}, "unknown_version must be refuse or warn"),
    ],
)
async def test_bad_options(
    core: Core, process: subprocess.Popen[bytes], vllm: SimpleNamespace, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigurationError, match=why):
        InProcessVLLM(FakeAsyncLLM(core, process), **options)


async def test_a_version_that_nobody_knows(
    core: Core, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, "9.9.0")
    with pytest.raises(ConfigurationError, match=r"vLLM 9.9.0 is not among the versions that are known here"):
        await engine_of(FakeAsyncLLM(core, process)).connect()
    engine = await engine_of(FakeAsyncLLM(core, process), unknown_version="warn").connect()
    assert any("driven as 0.33" in note for note in engine.capabilities.notes)
    await engine.aclose()


async def test_an_engine_core_that_has_ended_before(
    core: Core, process: subprocess.Popen[bytes], vllm: SimpleNamespace
) -> None:
    process.kill()
    process.wait()
    with pytest.raises(ConfigurationError, match="its engine core has ended"):
        await engine_of(FakeAsyncLLM(core, process)).connect()
