"""The backend on a CPU: tensors whose memory is returned to the operating system and mapped again.

It takes the place that torch_memory_saver has on a GPU. Every tensor allocated in a region is moved into a mapping of
its own (`Region` of the loopback engine), at an address that stays the same through every release.
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

from ..loopback.memory import Region, read_into, write_from
from .saver import Backup
from .tensors import storage_bytes

_LIBC = ctypes.CDLL(None)
#: Allocations of this size and above get a mapping of their own, which free() unmaps. Source: mallopt(3), glibc.
_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES = -3, 1 << 20


class PagesBackend:
    """Releases CPU memory of this process. Each allocation is a region of its own, which leaves its tag when freed.

    A release is proved by the memory that the process holds, so the C library is configured not to cache large freed
    blocks.
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
        """A context in which what this thread's torch operators allocate on the CPU lies in the tag's regions."""
        if backup is not None:
            self._backups.setdefault(tag, _Backup())
        self._regions.setdefault(tag, {})
        with _MoveNewTensors(lambda size: self._allocate(tag, size)):
            yield

    def cuda_graph(self, graph: Any, tag: str, options: Mapping[str, Any]) -> AbstractContextManager[None]:
        """A region, since a CPU has no CUDA graphs."""
        return self.region(tag, None)

    def pause(self, tag: str) -> None:
        """Returns the tag's pages to the operating system; with a backup, saves their contents to a file before."""
        regions = dict(self._regions[tag])
        if tag in self._backups:
            self._backups[tag].save(regions)
        for region in regions.values():
            region.drop()

    def resume(self, tag: str) -> None:
        """Makes the tag's pages resident; they hold the backup's contents, or zeros without a backup."""
        regions = dict(self._regions[tag])
        for region in regions.values():
            region.drop()
            region.touch()
        if tag in self._backups:
            self._backups[tag].restore(regions)

    def synchronize(self) -> None:
        """Does nothing, since a CPU runs operators as they are called."""

    def collect(self) -> None:
        """Collects garbage, and returns freed memory that the C library caches to the operating system."""
        gc.collect()
        if hasattr(_LIBC, "malloc_trim"):
            _LIBC.malloc_trim(0)

    def ranges(self, tag: str) -> Sequence[tuple[int, int]]:
        """Address and size in bytes of each of the tag's live allocations."""
        return [(address, region.size) for address, region in list(self._regions.get(tag, {}).items())]

    def host_bytes(self, tag: str) -> int:
        """Bytes by which the next pause would enlarge the backup file."""
        backup = self._backups.get(tag)
        return 0 if backup is None else max(0, sum(size for _, size in self.ranges(tag)) - backup.size)

    def device_key(self) -> str:
        """The name of this host, as readings of process memory have it."""
        return f"host:{socket.gethostname()}"

    def _allocate(self, tag: str, size: int) -> torch.Tensor:
        """A tensor of `size` bytes in a new region, which is freed with the last tensor over it."""
        region = Region(size)
        window = region.bytes[:size]
        address = window.ctypes.data
        self._regions[tag][address] = region
        weakref.finalize(window, self._freed, tag, address).atexit = False
        return torch.from_numpy(window)

    def _freed(self, tag: str, address: int) -> None:
        self._regions[tag].pop(address, None)


class _Backup:
    """A tag's contents in an anonymous file. It is not mapped, so it does not count as memory of the process."""

    def __init__(self) -> None:
        self._file = os.memfd_create("lifecycle-backup")
        #: The offset in the file of each region, by the region's address.
        self._offsets: dict[int, int] = {}

    @property
    def size(self) -> int:
        """The size of the file, which stays between releases."""
        return os.fstat(self._file).st_size

    def save(self, regions: Mapping[int, Region]) -> None:
        """Writes every region's bytes to the file."""
        self._offsets, end = {}, 0
        for address, region in regions.items():
            self._offsets[address] = end
            write_from(self._file, region.buffer(0, region.size), end)
            end += region.size

    def restore(self, regions: Mapping[int, Region]) -> None:
        """Reads its bytes back into every region that was saved and is still allocated."""
        for address, offset in self._offsets.items():
            if address in regions:
                read_into(self._file, regions[address].buffer(0, regions[address].size), offset)

    def __del__(self) -> None:
        os.close(self._file)


class _MoveNewTensors(TorchDispatchMode):  # type: ignore[misc]  # torch is Any where it is not installed
    """A context in which every new CPU tensor is moved into storage from `allocate`."""

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
        """Moves the tensor into a new storage with the same bytes; returns its address."""
        old = tensor.untyped_storage()
        new = self._allocate(old.nbytes())
        new.copy_(storage_bytes(old))
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
