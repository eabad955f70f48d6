"""Host buffers for staging, reused from release to release and limited by a budget.

Buffers for CUDA tensors are page-locked. Buffers for CPU tensors are files outside the process's own memory.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from lifecycle.core.units import MIB, mib
from lifecycle.nodes.host_memory import available_bytes

from .errors import HostMemoryShort

#: Bytes of one buffer: a power of two, since torch's allocator of pinned memory rounds up to one.
SLAB_BYTES = 256 * MIB
#: Bytes of host memory that staging leaves free for others.
RESERVE_BYTES = 512 * MIB
_PAGE = mmap.PAGESIZE


class HostBudget:
    """The host memory that the staging buffers sharing this budget may take together.

    With `limit_bytes` None they may take what is free on the host and in the control group, less `reserve_bytes`.
    """

    def __init__(self, limit_bytes: int | None = None, *, reserve_bytes: int = RESERVE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._reserve_bytes = reserve_bytes
        self._lock = threading.Lock()
        self.taken_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Takes this many bytes from the budget. Raises HostMemoryShort, and takes none, where they exceed it."""
        with self._lock:
            allowed, why = self._allowed()
            if size_bytes > allowed:
                raise HostMemoryShort(size_bytes, max(0, allowed), why)
            self.taken_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """Returns this many bytes to the budget."""
        with self._lock:
            self.taken_bytes -= size_bytes

    def _allowed(self) -> tuple[int, str]:
        free = available_bytes() - self._reserve_bytes
        if self._limit_bytes is not None and self._limit_bytes - self.taken_bytes < free:
            return self._limit_bytes - self.taken_bytes, f"is left of its budget of {mib(self._limit_bytes)}"
        return free, f"is free, {mib(self._reserve_bytes)} being left to others"


class Slab(Protocol):
    """One host buffer of `size` bytes; `held_bytes` is the host memory that it occupies."""

    size: int
    held_bytes: int

    def open(self) -> Any:
        """A context that gives the buffer as a uint8 tensor of `size` bytes."""

    def close(self) -> None:
        """Frees the buffer's memory."""


class PinnedSlab:
    """A page-locked buffer, to which CUDA copies asynchronously at the speed of the bus."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.held_bytes = pinned_bytes(size)
        self._tensor = torch.empty(size, dtype=torch.uint8, pin_memory=True)

    @contextmanager
    def open(self) -> Iterator[torch.Tensor]:
        """Gives the buffer itself; its address does not change."""
        yield self._tensor

    def close(self) -> None:
        """Frees the buffer, and empties torch's cache of pinned memory so that the host has it back."""
        self._tensor = torch.empty(0, dtype=torch.uint8)
        empty_cache = getattr(torch._C, "_host_emptyCache", None)
        if empty_cache is not None:
            empty_cache()


class FileSlab:
    """A buffer in an anonymous file in memory, mapped only during a copy.

    The residual of an engine on the CPU is measured as its process's memory. A buffer in that memory would count as not
    released; an unmapped file does not.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.held_bytes = -(-size // _PAGE) * _PAGE
        self._file: int | None = os.memfd_create("lifecycle-staging")
        os.posix_fallocate(self._file, 0, self.held_bytes)

    @contextmanager
    def open(self) -> Iterator[torch.Tensor]:
        """Gives the file's bytes; they are unmapped when the last tensor over them is deleted."""
        assert self._file is not None, "the buffer was closed"
        yield torch.frombuffer(mmap.mmap(self._file, self.held_bytes), dtype=torch.uint8, count=self.size)

    def close(self) -> None:
        """Closes the file, which frees its memory."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        self.close()


def pinned_bytes(size: int) -> int:
    """The bytes that torch's allocator of pinned memory takes for `size` bytes: the next power of two."""
    return 1 << max(0, size - 1).bit_length()


class HostBuffers:
    """A list of buffers that grows on demand and is reused from release to release."""

    def __init__(self, budget: HostBudget, *, slab_bytes: int = SLAB_BYTES) -> None:
        self._budget = budget
        self._slab_bytes = slab_bytes
        self.slabs: list[Slab] = []

    @property
    def size(self) -> int:
        """Bytes that the buffers can hold."""
        return sum(slab.size for slab in self.slabs)

    @property
    def held_bytes(self) -> int:
        """Bytes of host memory that the buffers occupy."""
        return sum(slab.held_bytes for slab in self.slabs)

    def short_bytes(self, size: int, *, pinned: bool) -> int:
        """Bytes of host memory that must be allocated before the buffers can hold `size` bytes."""
        return sum(_held(each, pinned) for each in self._missing(size))

    def ensure(self, size: int, *, pinned: bool) -> None:
        """Makes the buffers large enough for `size` bytes.

        Raises HostMemoryShort, before anything is allocated, where the budget does not allow it.
        """
        missing = self._missing(size)
        if not missing:
            return
        taken = sum(_held(each, pinned) for each in missing)
        self._budget.take(taken)
        made: list[Slab] = []
        try:
            for each in missing:
                made.append(PinnedSlab(each) if pinned else FileSlab(each))
        except BaseException:
            self._budget.give(taken)
            _close(made)
            raise
        self.slabs += made

    def close(self) -> None:
        """Frees all buffers and returns their bytes to the budget."""
        self._budget.give(self.held_bytes)
        _close(self.slabs)
        self.slabs = []

    def _missing(self, size: int) -> list[int]:
        short = size - self.size
        whole, rest = divmod(max(0, short), self._slab_bytes)
        return [self._slab_bytes] * whole + ([rest] if rest else [])


def _held(size: int, pinned: bool) -> int:
    return pinned_bytes(size) if pinned else -(-size // _PAGE) * _PAGE


def _close(slabs: Sequence[Slab]) -> None:
    for slab in slabs:
        slab.close()
