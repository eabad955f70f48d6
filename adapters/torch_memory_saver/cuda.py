"""The backend on CUDA: torch_memory_saver, called in an order in which it does not exit the process.

Source for every claim about torch_memory_saver here: its release 0.0.10, Python and csrc, read.
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
    """One CUDA device of this process.

    A tag's memory is the segments of torch's allocator that appeared while a region of the tag was open.
    """

    def __init__(self, device: torch.device, *, hook_mode: hooks.HookModeSetting = "auto") -> None:
        hooks.check_allocator(os.environ)
        if not torch.cuda.is_available():
            raise ConfigurationError(f"{device}: torch sees no CUDA device here; use device='cpu' for a trial run")
        self._saver, mode = hooks.memory_saver(hook_mode)
        self.hook_mode: HookMode | None = mode
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        self._segments: dict[str, dict[int, int]] = {}
        #: Bytes of host memory that the saver's backup of each tag has allocated. It keeps them.
        self._backed_up: dict[str, int] = {}

    @contextmanager
    def region(self, tag: str, backup: Backup | None) -> Iterator[None]:
        """A context in which what this thread allocates on the device belongs to the tag.

        Only this thread is affected: what autograd's threads allocate meanwhile lies outside the region.
        """
        if backup is not None:
            self._backed_up.setdefault(tag, 0)
            self._saver.retain_cpu_backup = True  # process-wide: the backup's memory is kept between pauses
        before = self._known()
        try:
            with torch.cuda.device(self.device), self._saver.region(**_options(tag, backup)):
                yield
        finally:
            self._add_new_segments(tag, before)

    @contextmanager
    def cuda_graph(self, graph: Any, tag: str, options: Mapping[str, Any]) -> Iterator[None]:
        """A context in which the graph is captured into the tag's memory. It needs the hook mode preload."""
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
            self._add_new_segments(tag, before)

    def pause(self, tag: str) -> None:
        """Releases the tag's memory. The saver does not synchronise the device; the caller has done so."""
        with torch.cuda.device(self.device):
            self._saver.pause(tag)
        if tag in self._backed_up:
            self._backed_up[tag] = self._bytes(tag)

    def resume(self, tag: str) -> None:
        """Maps the tag's memory at its old addresses. The saver exits the process where too little memory is free."""
        with torch.cuda.device(self.device):
            self._saver.resume(tag)

    def synchronize(self) -> None:
        """Waits until everything queued on the device has run."""
        torch.cuda.synchronize(self.device)

    def collect(self) -> None:
        """Frees garbage, torch's cached blocks and memory shared with processes that have ended."""
        gc.collect()
        with torch.cuda.device(self.device):
            torch.cuda.empty_cache()
            torch.cuda.ipc_collect()

    def ranges(self, tag: str) -> Sequence[tuple[int, int]]:
        """Address and size in bytes of each allocator segment that belongs to the tag."""
        return list(self._segments.get(tag, {}).items())

    def host_bytes(self, tag: str) -> int:
        """Bytes that the tag's backup lacks. It keeps its memory from pause to pause."""
        return max(0, self._bytes(tag) - self._backed_up[tag]) if tag in self._backed_up else 0

    def device_key(self) -> str:
        """The device's UUID, as NVML names it."""
        return f"GPU-{torch.cuda.get_device_properties(self.device).uuid}"

    def _bytes(self, tag: str) -> int:
        return sum(size for _, size in self.ranges(tag))

    def _known(self) -> set[int]:
        return set(self._all_segments())

    def _add_new_segments(self, tag: str, before: set[int]) -> None:
        """Adds the segments that are new since `before` to the tag, except those that a nested region has added."""
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
