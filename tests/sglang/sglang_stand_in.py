"""An SGLang `Engine` without a model: what is paused and released, its traps, and answers that are told by their order.

Source: sglang 0.5.23, managers/tokenizer_manager.py, managers/communicator.py.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

REQUESTS = (
    "PauseGenerationReqInput",
    "ContinueGenerationReqInput",
    "ReleaseMemoryOccupationReqInput",
    "ResumeMemoryOccupationReqInput",
    "UpdateWeightFromDiskReqInput",
    "BeginWeightUpdateReqInput",
    "EndWeightUpdateReqInput",
    "UpdateWeightsFromTensorReqInput",
)


class Float64(float):
    """NumPy's, which some of a real engine's figures are: found by `tests/real/run_in_process.py`."""


class FakeManager:
    """The tokenizer manager: it belongs to the loop on which it is first used, where alone it gets answers."""

    def __init__(self) -> None:
        self.event_loop: asyncio.AbstractEventLoop | None = None
        self.is_pause, self.released = False, set[str]()
        self.rid_to_state: dict[str, SimpleNamespace] = {}
        self.calls: list[str] = []
        self.startup_time = {"total": 1.5}
        self.version, self.path = "default", "/models/a"
        #: By the name of a call: what it returns, or raises, instead of what it would.
        self.instead: dict[str, Any] = {}
        #: Calls that wait until this says otherwise, by name.
        self.holds: Callable[[str], bool] = lambda name: False

    def sent(self) -> list[str]:
        """The calls since this was asked last, without questions."""
        calls, self.calls = self.calls, []
        return [each for each in calls if not each.startswith("get_")]

    async def _called(self, name: str, *args: Any) -> None:
        self.event_loop = self.event_loop or asyncio.get_running_loop()
        if asyncio.get_running_loop() is not self.event_loop:
            await asyncio.Event().wait()
        self.calls.append(f"{name}({', '.join(map(repr, args))})")
        while self.holds(name):  # noqa: ASYNC110 - set by another thread
            await asyncio.sleep(0.002)
        await asyncio.sleep(0)
        if isinstance(self.instead.get(name), Exception):
            raise self.instead[name]

    async def pause_generation(self, request: SimpleNamespace) -> None:
        await self._called("pause", request.mode)
        self.is_pause = True

    async def continue_generation(self, request: SimpleNamespace) -> None:
        await self._called("continue")
        self.is_pause = False

    def abort_request(self, rid: str = "", abort_all: bool = False) -> None:
        self.calls.append("abort_all()" if abort_all else "abort()")

    async def flush_cache(self, timeout_s: float | None = None) -> SimpleNamespace:
        await self._called("flush", *([] if timeout_s is None else [timeout_s]))
        return SimpleNamespace(success=self.instead.get("flush", True), message="Flush cache failed.")

    async def release_memory_occupation(self, request: SimpleNamespace) -> None:
        await self._called("release", *request.tags)
        assert not self.released & set(request.tags), "a tag that is released twice ends the server"
        self.released |= set(request.tags)

    async def resume_memory_occupation(self, request: SimpleNamespace) -> None:
        await self._called("resume", *request.tags)
        self.released -= set(request.tags)

    async def update_weights_from_disk(self, request: SimpleNamespace) -> tuple[bool, str, int]:
        await self._called("load", request.model_path, request.weight_version)
        if "load" in self.instead:
            return False, self.instead["load"], 0
        self.version = request.weight_version
        return True, "Succeeded.", 0

    async def begin_weight_update(self, request: SimpleNamespace) -> tuple[bool, str]:
        await self._called("begin")
        return True, ""

    async def end_weight_update(self, request: SimpleNamespace) -> tuple[bool, str]:
        await self._called("end")
        return (False, self.instead["end"]) if "end" in self.instead else (True, "")

    async def update_weights_from_tensor(self, request: SimpleNamespace) -> tuple[bool, str]:
        await self._called("tensor", request.weight_version)
        return True, ""

    async def get_internal_state(self) -> list[dict[str, Any]]:
        await self._called("get_state")
        return [{"memory_usage": {"weight": 0.1, "kvcache": Float64(0.2)}}]

    async def generate(self, params: dict[str, Any]) -> Any:
        await self._called("get_tokens")
        answer = self.instead.get("generate", {"output_ids": [7], "meta_info": {"completion_tokens": 1}})
        if answer is None:
            await asyncio.Event().wait()
        return answer


class FakeEngine:
    """The engine, whose own loop rests unless one of its methods blocks."""

    def __init__(self, process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop, **arguments: Any) -> None:
        self.tokenizer_manager, self.loop, self._process = FakeManager(), loop, process
        own = {"device": "cuda", "tp_size": 1, "dp_size": 1, "random_seed": 5, "enable_memory_saver": True}
        own |= {"model_path": "/models/a", **arguments}
        self.server_args = SimpleNamespace(resolved_dict=lambda: own)

    def get_model_info(self) -> dict[str, Any]:
        manager = self.tokenizer_manager
        return {"model_path": manager.path, "weight_version": manager.version}

    def get_all_child_pids(self) -> list[int]:
        return [self._process.pid]

    async def async_generate(self, prompt: str, sampling_params: dict[str, Any], rid: str) -> Any:
        return await self.tokenizer_manager.generate(sampling_params)


def installed(monkeypatch: pytest.MonkeyPatch, version: str = "0.5.23") -> None:
    """Modules named as SGLang's, of this version."""
    sglang, io_struct = ModuleType("sglang"), ModuleType("sglang.srt.managers.io_struct")
    sglang.__version__ = version  # type: ignore[attr-defined]
    for name in REQUESTS:
        setattr(io_struct, name, SimpleNamespace)
    for module in (sglang, io_struct):
        monkeypatch.setitem(sys.modules, module.__name__, module)
