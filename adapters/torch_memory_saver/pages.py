"""The backend without CUDA: CPU tensors whose storages lie in pages that are really given back.

Stands where torch_memory_saver stands on a GPU, over the page-returning regions of the loopback engine: what is
allocated inside a region is moved into pages of its own, at an address that it keeps through every release.
"""

from __future__ import annotations

import ctypes
import gc
import os
import socket
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lifecycle.nodes.hook_mode import HookMode

from ..loopback.memory import Region, read_into
from .saver import Backup

_LIBC = ctypes.CDLL(None)
#: glibc: from this size on an allocation is a mapping of its own, which a free gives back. Source: mallopt(3).
_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES = -3, 1 << 20


class PagesBackend:
    """Tensors of this process's CPU memory. One allocation, one region: memory that is freed leaves its tag.

    The process's residual is what proves a release, so the C library is told not to keep large freed blocks.
    """

    def __init__(self) -> None:
        if hasattr(_LIBC, "mallopt"):
            _LIBC.mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES)
        self.device = torch.device("cpu")
        self.hook_mode: HookMode | None = None
        self._regions: dict[str, dict[int, Region]] = {}
        self._backups: dict[str, _Backup] = {}

    @contextmanager
    def region(self, tag: str, backup: Backup | None) -> Iterator[None]:
        """Inside, what this thread's operators allocate on the CPU lies in the tag's pages."""
        if backup is not None:
            self._backups.setdefault(tag, _Backup())
        self._regions.setdefault(tag, {})
        with _Moving(lambda size: self._allocate(tag, size)):
            yield

    def cuda_graph(self, graph: Any, tag: str, options: Mapping[str, Any]) -> AbstractContextManager[None]:
        """A region: there is nothing to capture here."""
        return self.region(tag, None)

    def pause(self, tag: str) -> None:
        """The pages are the operating system's; with a backup, a file outside the process has what was in them."""
        regions = dict(self._regions[tag])
        if tag in self._backups:
            self._backups[tag].save(regions)
        for region in regions.values():
            region.drop()

    def resume(self, tag: str) -> None:
        """The pages are resident again, and hold zeros or what the backup has."""
        regions = dict(self._regions[tag])
        for region in regions.values():
            region.drop()
            region.touch()
        if tag in self._backups:
            self._backups[tag].restore(regions)

    def synchronize(self) -> None:
        """Nothing is ever queued."""

    def collect(self) -> None:
        """Garbage is collected, and what the C library keeps of freed memory is the operating system's."""
        gc.collect()
        if hasattr(_LIBC, "malloc_trim"):
            _LIBC.malloc_trim(0)

    def ranges(self, tag: str) -> Sequence[tuple[int, int]]:
        """Address and size of every allocation that is alive."""
        return [(address, region.size) for address, region in list(self._regions.get(tag, {}).items())]

    def host_bytes(self, tag: str) -> int:
        """What the backup's file would grow by."""
        backup = self._backups.get(tag)
        return 0 if backup is None else max(0, sum(size for _, size in self.ranges(tag)) - backup.size)

    def device_key(self) -> str:
        """As process memory is read: by host."""
        return f"host:{socket.gethostname()}"

    def _allocate(self, tag: str, size: int) -> torch.Tensor:
        """`size` bytes in a region of their own, which lives as long as a tensor is in it."""
        region = Region(size)
        window = region.bytes[:size]
        address = window.ctypes.data
        self._regions[tag][address] = region
        weakref.finalize(window, self._freed, tag, address).atexit = False
        return torch.from_numpy(window)

    def _freed(self, tag: str, address: int) -> None:
        self._regions[tag].pop(address, None)


class _Backup:
    """A tag's contents in an anonymous file, mapped nowhere, so that they do not count as the process's memory."""

    def __init__(self) -> None:
        self._file = os.memfd_create("lifecycle-backup")
        self._places: dict[int, int] = {}

    @property
    def size(self) -> int:
        """Bytes that the file takes, between releases too."""
        return os.fstat(self._file).st_size

    def save(self, regions: Mapping[int, Region]) -> None:
        """The file holds every region's bytes."""
        self._places, end = {}, 0
        for address, region in regions.items():
            self._places[address] = end
            done = 0
            while done < region.size:
                done += os.pwrite(self._file, region.buffer(done, region.size - done), end + done)
            end += region.size

    def restore(self, regions: Mapping[int, Region]) -> None:
        """Every region that was saved holds its bytes."""
        for address, place in self._places.items():
            if address in regions:
                read_into(self._file, regions[address].buffer(0, regions[address].size), place)

    def __del__(self) -> None:
        os.close(self._file)


class _Moving(TorchDispatchMode):  # type: ignore[misc]  # torch is Any where it is not installed
    """Inside, the storage of every new CPU tensor is one of `allocate`."""

    def __init__(self, allocate: Any) -> None:
        super().__init__()
        self._allocate = allocate

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = set() if func is torch.ops.aten.lift_fresh.default else _addresses((args, kwargs))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and _movable(tensor) and _address(tensor) not in known:
                known.add(self._move(tensor))
        return out

    def _move(self, tensor: torch.Tensor) -> int:
        """The tensor's storage is a new one with the same bytes; its address."""
        old = tensor.untyped_storage()
        new = self._allocate(old.nbytes())
        new.copy_(torch.empty(0, dtype=torch.uint8).set_(old, 0, (old.nbytes(),), (1,)))
        tensor.set_(new.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
        address: int = new.data_ptr()
        return address


def _movable(tensor: torch.Tensor) -> bool:
    strided = tensor.device.type == "cpu" and tensor.layout is torch.strided
    return bool(strided and tensor.untyped_storage().nbytes())


def _address(tensor: torch.Tensor) -> int:
    address: int = tensor.untyped_storage().data_ptr()
    return address


def _addresses(arguments: Any) -> set[int]:
    tensors = (each for each in tree_leaves(arguments) if isinstance(each, torch.Tensor))
    return {_address(tensor) for tensor in tensors if _movable(tensor)}
