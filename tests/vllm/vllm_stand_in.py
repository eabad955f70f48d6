"""An `AsyncLLM` and an `LLM` without a model: what is paused, asleep and cached, and vLLM's traps.

Source: vllm 0.32.0, v1/engine/core.py and v1/executor/abstract.py: an unknown tag wakes nothing and raises nothing, the
wake that leaves nothing asleep resumes, no level is refused, a sleep of level 0 keeps caches.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from lifecycle.adapters.vllm_in_process import InProcessVLLM

from lifecycle import Engine, Grade, Policy
from lifecycle.nodes.probes import NoProbe

TAGS = frozenset({"weights", "kv_cache"})


class EngineDeadError(Exception):
    """What a call raises whose engine core has ended."""


class Core:
    """What an engine core knows, and the calls that it was sent, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.paused, self.asleep, self.label = False, frozenset[str](), "default"
        self.requests = 0
        self.dead = False
        #: By the name of a call: what it returns, or raises, instead of what it would.
        self.instead: dict[str, Any] = {}
        #: Calls that wait until this says otherwise, by name.
        self.holds: Callable[[str], bool] = lambda name: False

    def call(self, name: str, *args: Any) -> Any:
        """The call is made, and answered as vLLM answers it."""
        if self.dead:
            raise EngineDeadError("EngineCore encountered an issue")
        self.calls.append(f"{name}({', '.join(map(repr, args))})")
        result = getattr(self, f"_{name}", lambda *_: None)(*args)
        if name in self.instead:
            result = self.instead[name]
        if isinstance(result, Exception):
            raise result
        return result

    def sent(self) -> list[str]:
        """The calls since this was asked last, without questions."""
        calls, self.calls = self.calls, []
        return [each for each in calls if not each.startswith(("is_", "get_"))]

    def _pause(self, mode: str, clear_cache: bool) -> None:
        self.paused = True
        self.requests = 0 if mode in ("abort", "wait") else self.requests

    def _resume(self) -> None:
        self.paused = False

    def _sleep(self, level: int, mode: str) -> None:
        self._pause(mode, level > 0)
        self.asleep = TAGS if level else self.asleep

    def _wake_up(self, tags: list[str]) -> bool:
        self.asleep -= frozenset(tags) if frozenset(tags) <= TAGS else frozenset()
        self.paused = self.paused if self.asleep else False
        return not self.asleep

    def _reset_prefix_cache(self, running: bool = False) -> bool:
        return True

    def _collective_rpc(self, method: str, kwargs: Any) -> list[None]:
        return [None]

    def _set_label(self, label: str) -> None:
        self.label = label

    def _is_paused(self) -> bool:
        return self.paused

    def _is_sleeping(self) -> bool:
        return self.paused or bool(self.asleep)

    def _get_label(self) -> str:
        return self.label


def config() -> SimpleNamespace:
    """The parts of a `VllmConfig` that are read."""
    parallel = SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1, data_parallel_size=1)
    return SimpleNamespace(
        instance_id="12345",
        model_config=SimpleNamespace(model="/models/a", enable_cumem_allocator=True, enable_sleep_mode=True),
        device_config=SimpleNamespace(device="cuda", device_type="cuda"),
        parallel_config=parallel,
        kv_transfer_config=None,
        weight_transfer_config=SimpleNamespace(backend="nccl"),
    )


class Client:
    """The client of an engine core, whose process is a real one that does nothing."""

    def __init__(self, core: Core, process: subprocess.Popen[bytes]) -> None:
        self.resources = SimpleNamespace(engine_manager=SimpleNamespace(processes=[process]), engine_dead=False)
        self.core = core


class FakeAsyncLLM:
    """An `AsyncLLM` of the loop on which it is first asked: on another one a call never returns."""

    def __init__(self, core: Core, process: subprocess.Popen[bytes]) -> None:
        self.core, self.vllm_config, self.output_handler = core, config(), None
        self.engine_core = Client(core, process)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def errored(self) -> bool:
        return self.core.dead

    async def _call(self, name: str, *args: Any) -> Any:
        self._loop = self._loop or asyncio.get_running_loop()
        if asyncio.get_running_loop() is not self._loop:
            await asyncio.Event().wait()
        while self.core.holds(name):  # noqa: ASYNC110 - set by another thread
            await asyncio.sleep(0.002)
        return self.core.call(name, *args)

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        await self._call("pause", mode, clear_cache)

    async def resume_generation(self) -> None:
        await self._call("resume")

    async def is_paused(self) -> bool:
        return await self._call("is_paused")  # type: ignore[no-any-return]

    async def sleep(self, level: int, mode: str) -> None:
        await self._call("sleep", level, mode)

    async def wake_up(self, tags: list[str]) -> bool:
        return await self._call("wake_up", tags)  # type: ignore[no-any-return]

    async def release_kv_cache_memory(self) -> None:
        await self._call("release_kv_cache_memory")

    async def reset_prefix_cache(self) -> bool:
        return await self._call("reset_prefix_cache")  # type: ignore[no-any-return]

    async def reset_encoder_cache(self) -> None:
        await self._call("reset_encoder_cache")

    async def collective_rpc(self, method: str, kwargs: Any) -> list[None]:
        return await self._call("collective_rpc", method, kwargs)  # type: ignore[no-any-return]

    async def update_weight_version(self, new_version: str) -> None:
        await self._call("set_label", new_version)

    async def get_weight_version(self) -> str:
        return await self._call("get_label")  # type: ignore[no-any-return]

    async def start_weight_update(self) -> None:
        await self._call("start_weight_update")

    async def update_weights(self, request: Any) -> None:
        await self._call("update_weights", request)

    async def finish_weight_update(self, weight_version: str | None = None) -> None:
        await self._call("finish_weight_update", weight_version)

    async def generate(self, prompt: Any, params: Any, request_id: str) -> Any:
        await self._call("get_tokens")
        ids = self.core.instead.get("generate", [7] * params.max_tokens)
        if ids is None:
            ids = await self._aborted()
        yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, finish_reason="length")])

    async def _aborted(self) -> list[int]:
        self._abort = asyncio.Event()
        await self._abort.wait()
        return []

    async def abort(self, request_id: str) -> None:
        await self._call("abort")
        self._abort.set()

    def get_num_unfinished_requests(self) -> int:
        return self.core.requests


class FakeLLM:
    """An `LLM`: no pause and no resume of its own."""

    def __init__(self, core: Core, process: subprocess.Popen[bytes] | None) -> None:
        self.core = core
        client = SimpleNamespace() if process is None else Client(core, process)
        self.llm_engine = SimpleNamespace(
            engine_core=client,
            vllm_config=config(),
            is_sleeping=lambda: core.call("is_sleeping"),
            get_num_unfinished_requests=lambda: core.requests,
            reset_encoder_cache=lambda: core.call("reset_encoder_cache"),
        )

    def sleep(self, level: int, mode: str) -> None:
        self.core.call("sleep", level, mode)

    def wake_up(self, tags: list[str]) -> bool:
        real = [tag for tag in tags if tag != "scheduling"]
        return bool(self.core.call("wake_up", tags) if real else self._awake(tags))

    def _awake(self, tags: list[str]) -> bool:
        self.core.call("get_awake")
        self.core.calls.append(f"wake_up({tags!r})")
        self.core.paused = self.core.paused if self.core.asleep else False
        return not self.core.asleep

    def release_kv_cache_memory(self) -> None:
        self.core.call("release_kv_cache_memory")

    def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
        return bool(self.core.call("reset_prefix_cache", *([True] if reset_running_requests else [])))

    def collective_rpc(self, method: str, kwargs: Any) -> Any:
        return self.core.call("collective_rpc", method, kwargs)

    def update_weight_version(self, new_version: str) -> None:
        self.core.call("set_label", new_version)

    def get_weight_version(self) -> str:
        return str(self.core.call("get_label"))

    def generate(self, prompts: Any, params: Any, use_tqdm: bool) -> Any:
        self.core.call("get_tokens")
        ids = self.core.instead.get("generate", [7] * params.max_tokens)
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids)])]


def installed(monkeypatch: pytest.MonkeyPatch, version: str = "0.32.0") -> SimpleNamespace:
    """Modules named as vLLM's, of this version. `tokens` of what is returned are those that were generated."""
    counted = SimpleNamespace(tokens=0.0)
    vllm, reader = ModuleType("vllm"), ModuleType("vllm.v1.metrics.reader")
    transfer = ModuleType("vllm.distributed.weight_transfer.base")
    vllm.__version__ = version  # type: ignore[attr-defined]
    vllm.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    reader.get_metrics_snapshot = lambda: [  # type: ignore[attr-defined]
        SimpleNamespace(name="vllm:generation_tokens", value=counted.tokens)
    ]
    transfer.WeightTransferUpdateRequest = dict  # type: ignore[attr-defined]
    for module in (vllm, reader, transfer):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return counted


UNSEEN = Policy(
    accept=dict.fromkeys(("memory_returned", "tags_unmapped", "weights_mapped", "kv_mapped"), Grade.ACKNOWLEDGED)
)


def engine_of(llm: Any, **options: Any) -> Engine:
    """An engine of this object, whose memory nothing measures."""
    return Engine(InProcessVLLM(llm, name="e", **options), name="e", policy=UNSEEN, probe=NoProbe("it has no memory"))
