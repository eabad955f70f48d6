"""What stands in for verl's heavy requirements: sglang's objects over HTTP, a device that is no GPU, and a trainer.

Ray, omegaconf and tensordict are the real ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import hollow_modules
import torch
from lifecycle.adapters.loopback.checkpoint import blob_of
from peer_step import post, trained_checkpoint
from safetensors.torch import load_file

HOLLOW = ("PIL", "datasets", "pandas", "sglang", "transformers")


class ServerArgs(SimpleNamespace):
    """sglang's."""

    node_rank = 0


async def update_weights(engine: Any, params_batch: Any, device_mesh_key: str, device_mesh: Any) -> None:
    """sglang's: gathers the tensors of the ranks, of which there is one, and hands them to the engine."""
    blob = blob_of({name: tensor.detach().numpy() for name, tensor in params_batch})
    request = {"serialized_named_tensors": [blob], "load_format": "safetensors", "flush_cache": False}
    await engine.update_weights_from_tensor(SimpleNamespace(**request))


class TokenizerManager:
    """sglang's object in the server's process: here each of its methods is a request to an engine process."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def _post(self, path: str, body: Any = None) -> Any:
        return await asyncio.to_thread(post, f"{self._url}/{path}", body or {})

    async def release_memory_occupation(self, asked: Any, request: Any) -> None:
        await self._post("release_memory_occupation", {"tags": asked.tags})

    async def resume_memory_occupation(self, asked: Any, request: Any) -> None:
        await self._post("resume_memory_occupation", {"tags": asked.tags})

    async def flush_cache(self) -> None:
        await self._post("flush_cache")

    async def generate_request(self, asked: Any, request: Any) -> AsyncIterator[Any]:
        body = {"input_ids": asked.input_ids, "sampling_params": asked.sampling_params}
        yield await asyncio.to_thread(post, f"{self._url}/generate", body, 5.0)


class Device:
    """torch's module of a device that has no memory of its own."""

    def empty_cache(self) -> None: ...

    def synchronize(self) -> None: ...

    def memory_allocated(self) -> int:
        return 0

    memory_reserved = memory_allocated

    def mem_get_info(self) -> tuple[int, int]:
        return 0, 0


def install() -> hollow_modules.HollowModules:
    """The requirements are hollow but for these, and verl's platform is this device."""
    inputs = dict.fromkeys(
        ("GenerateReqInput", "ReleaseMemoryOccupationReqInput", "ResumeMemoryOccupationReqInput"), SimpleNamespace
    )
    filled: dict[str, dict[str, Any]] = {
        "sglang.srt.managers.io_struct": inputs,
        "sglang.srt.server_args": {"ServerArgs": ServerArgs},
        "sglang.srt.weight_sync.utils": {"update_weights": update_weights},
    }
    hollow = hollow_modules.installed(HOLLOW, filled)
    from verl.plugin.platform import set_platform
    from verl.plugin.platform.platform_cuda import PlatformCUDA

    class Platform(PlatformCUDA):
        device_name = "cpu"
        device_module = Device()

        def current_device(self) -> str:
            return "cpu"

        def set_allocator_settings(self, settings: str) -> None: ...

    set_platform(Platform())
    return hollow


class Model:
    """The trainer's engine."""

    is_param_offload_enabled = True

    def get_per_tensor_param(self, **options: Any) -> tuple[Iterator[tuple[str, torch.Tensor]], None]:
        return iter(load_file(trained_checkpoint()).items()), None

    def to(self, device: str, **what: bool) -> None: ...
