"""The backend on CUDA: torch_memory_saver, used in the order in which it survives.

Source for everything here: torch_memory_saver 0.0.10 (Python and csrc), read.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lifecycle.core.errors import ConfigurationError
from lifecycle.nodes.hook_mode import HookMode

from . import hooks
from .saver import Backup


class CudaBackend:
    """One device of this process. Which segments of torch's allocator belong to a tag is seen as they appear."""

    def __init__(self, device: torch.device, *, hook_mode: hooks.Asked = "auto") -> None:
        hooks.check_allocator(os.environ)
        if not torch.cuda.is_available():
            raise ConfigurationError(f"{device}: torch sees no CUDA device here; use device='cpu' for a trial run")
        self._saver, mode = hooks.memory_saver(hook_mode)
        self.hook_mode: HookMode | None = mode
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        self._segments: dict[str, dict[int, int]] = {}
        #: Host bytes that the saver's backup of each tag has taken, and keeps.
        self._backed_up: dict[str, int] = {}

    @contextmanager
    def region(self, tag: str, backup: Backup | None) -> Iterator[None]:
        """Inside, what this thread allocates on the device belongs to the tag.

        The settings are the thread's own: what autograd's threads allocate is outside.
        """
        if backup is not None:
            self._backed_up.setdefault(tag, 0)
            self._saver.retain_cpu_backup = True  # of the process: host memory is not allocated anew at every pause
        before = self._known()
        try:
            with torch.cuda.device(self.device), self._saver.region(**_options(tag, backup)):
                yield
        finally:
            self._take(tag, before)

    @contextmanager
    def cuda_graph(self, graph: Any, tag: str, options: Mapping[str, Any]) -> Iterator[None]:
        """Inside, the graph is captured into the tag's memory; only hook mode preload can."""
        if self.hook_mode != "preload":
            raise ConfigurationError(
                "hook mode 'torch' cannot release a CUDA graph's memory; capture it with torch.cuda.graph() around "
                "buffers of a region, or start the process with hook mode preload"
            )
        before = self._known()
        try:
            with torch.cuda.device(self.device), self._saver.cuda_graph(cuda_graph=graph, tag=tag, **options):
                yield
        finally:
            self._take(tag, before)

    def pause(self, tag: str) -> None:
        """The tag's memory is the device's. The saver does not synchronise, so it was done before."""
        with torch.cuda.device(self.device):
            self._saver.pause(tag)
        if tag in self._backed_up:
            self._backed_up[tag] = self._bytes(tag)

    def resume(self, tag: str) -> None:
        """The tag's memory is mapped at its old addresses. Too little free memory ends the process."""
        with torch.cuda.device(self.device):
            self._saver.resume(tag)

    def synchronize(self) -> None:
        """Everything queued on the device has run."""
        torch.cuda.synchronize(self.device)

    def collect(self) -> None:
        """Garbage, torch's cache and the memory shared with ended processes are given back."""
        gc.collect()
        with torch.cuda.device(self.device):
            torch.cuda.empty_cache()
            torch.cuda.ipc_collect()

    def ranges(self, tag: str) -> Sequence[tuple[int, int]]:
        """Address and size of the allocator's segments in which the tag's allocations lie."""
        return list(self._segments.get(tag, {}).items())

    def host_bytes(self, tag: str) -> int:
        """What the backup lacks; it is kept from pause to pause."""
        return max(0, self._bytes(tag) - self._backed_up[tag]) if tag in self._backed_up else 0

    def device_key(self) -> str:
        """As NVML names it: its UUID."""
        return f"GPU-{torch.cuda.get_device_properties(self.device).uuid}"

    def _bytes(self, tag: str) -> int:
        return sum(size for _, size in self.ranges(tag))

    def _known(self) -> set[int]:
        return set(self._all_segments())

    def _take(self, tag: str, before: set[int]) -> None:
        """Segments that appeared in the region belong to it, unless a region inside it has taken them."""
        taken = {address for mine in self._segments.values() for address in mine}
        found = {at: size for at, size in self._all_segments().items() if at not in before and at not in taken}
        self._segments.setdefault(tag, {}).update(found)

    def _all_segments(self) -> dict[int, int]:
        segments = torch.cuda.memory_snapshot()
        return {each["address"]: each["total_size"] for each in segments if each["device"] == self.device.index}


def _options(tag: str, backup: Backup | None) -> dict[str, Any]:
    if backup is None:
        return {"tag": tag}
    return {"tag": tag, "enable_cpu_backup": True, "cpu_backup_backend": backup}
