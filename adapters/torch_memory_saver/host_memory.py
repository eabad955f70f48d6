"""Host buffers for staging: pinned beside CUDA, outside the process beside CPU tensors; reused, and within a budget."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from lifecycle.nodes.host_memory import available_bytes

from .errors import HostMemoryShort

MIB = 1 << 20

#: One buffer's size: a power of two, since pinned allocations are rounded up to one.
SLAB_BYTES = 256 * MIB
#: Host memory that staging leaves free.
RESERVE_BYTES = 512 * MIB
_PAGE = mmap.PAGESIZE


class HostBudget:
    """How much host memory the staging buffers of this process may take, all together.

    `limit_bytes` None: whatever the host and the control group have, less `reserve_bytes`.
    """

    def __init__(self, limit_bytes: int | None = None, *, reserve_bytes: int = RESERVE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._reserve_bytes = reserve_bytes
        self._lock = threading.Lock()
        self.taken_bytes = 0

    def take(self, size_bytes: int) -> None:
        """These bytes are the caller's; HostMemoryShort where they exceed the budget, and none is taken."""
        with self._lock:
            allowed, why = self._allowed()
            if size_bytes > allowed:
                raise HostMemoryShort(size_bytes, max(0, allowed), why)
            self.taken_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """These bytes are the budget's again."""
        with self._lock:
            self.taken_bytes -= size_bytes

    def _allowed(self) -> tuple[int, str]:
        free = available_bytes() - self._reserve_bytes
        if self._limit_bytes is not None and self._limit_bytes - self.taken_bytes < free:
            return self._limit_bytes - self.taken_bytes, f"is left of its budget of {self._limit_bytes // MIB} MiB"
        return free, f"is free, {self._reserve_bytes // MIB} MiB being left to others"


class Slab(Protocol):
    """One host buffer; `held_bytes` is what the host really gives for it."""

    size: int
    held_bytes: int

    def open(self) -> Any:
        """A context in which it is a uint8 tensor of `size` bytes."""

    def close(self) -> None:
        """Its memory is given back."""


class PinnedSlab:
    """Page-locked memory, which a device copies at the speed of its bus while the host goes on."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.held_bytes = pinned_bytes(size)
        self._tensor = torch.empty(size, dtype=torch.uint8, pin_memory=True)

    @contextmanager
    def open(self) -> Iterator[torch.Tensor]:
        """Inside, the buffer itself; it stays where it is."""
        yield self._tensor

    def close(self) -> None:
        """The buffer is torch's again, and from its cache the host's."""
        self._tensor = torch.empty(0, dtype=torch.uint8)
        empty_cache = getattr(torch._C, "_host_emptyCache", None)
        if empty_cache is not None:
            empty_cache()


class FileSlab:
    """An anonymous file in memory, mapped only while it is copied from or to.

    What a CPU engine stages must not count as memory that the engine holds, as a GPU's host buffers do not count as
    the device's.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.held_bytes = -(-size // _PAGE) * _PAGE
        self._file: int | None = os.memfd_create("lifecycle-staging")
        os.posix_fallocate(self._file, 0, self.held_bytes)

    @contextmanager
    def open(self) -> Iterator[torch.Tensor]:
        """Inside, the file's bytes; they are unmapped when the last tensor of them is gone."""
        assert self._file is not None, "the buffer was closed"
        yield torch.frombuffer(mmap.mmap(self._file, self.held_bytes), dtype=torch.uint8, count=self.size)

    def close(self) -> None:
        """The memory is the host's again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        self.close()


def pinned_bytes(size: int) -> int:
    """What torch's pinned allocator takes for `size` bytes: the next power of two."""
    return 1 << max(0, size - 1).bit_length()


class HostBuffers:
    """Slabs that hold at least what was asked for; they grow, and are reused from cycle to cycle."""

    def __init__(self, budget: HostBudget, *, slab_bytes: int = SLAB_BYTES) -> None:
        self._budget = budget
        self._slab_bytes = slab_bytes
        self.slabs: list[Slab] = []

    @property
    def size(self) -> int:
        """Bytes that fit."""
        return sum(slab.size for slab in self.slabs)

    @property
    def held_bytes(self) -> int:
        """Bytes of host memory that they take."""
        return sum(slab.held_bytes for slab in self.slabs)

    def short_bytes(self, size: int, *, pinned: bool) -> int:
        """Bytes of host memory that it would take to hold `size` bytes."""
        return sum(_held(each, pinned) for each in self._missing(size))

    def ensure(self, size: int, *, pinned: bool) -> None:
        """They hold `size` bytes; HostMemoryShort, before any is allocated, where the budget does not allow it."""
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
        """Their memory is the host's again."""
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
