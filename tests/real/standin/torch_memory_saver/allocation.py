"""One tensor's memory, and how it leaves the process and comes back.

Pages are given back with `madvise(MADV_DONTNEED)`: private anonymous memory loses its contents and its residency at
once, and reads as zeros afterwards. Only whole pages go; what the tensor has of the pages at its two ends, which it
shares with its neighbours, is zeroed.
"""

from __future__ import annotations

import ctypes
import enum
import mmap
import os
import sys
import tempfile
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from torch import UntypedStorage

PAGE = mmap.PAGESIZE
MADV_DONTNEED = 4
BLOCK = 64 << 20  # bytes a single write or read of the backup moves

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class State(enum.Enum):
    """Whether the memory is there."""

    ACTIVE = "active"
    PAUSED = "paused"


class Allocation:
    """The memory of one storage: there while ACTIVE, given back while PAUSED.

    The storage belongs to whoever allocated it: it is held here only for the length of a call.
    """

    def __init__(self, tag: str, *, backup: bool) -> None:
        self.tag = tag
        self.state = State.ACTIVE
        self._backup = backup
        self._spill: int | None = None

    def pause(self, storage: UntypedStorage) -> None:
        """The pages are the operating system's; a call on a paused allocation ends the process."""
        if self.state is not State.ACTIVE:
            _die("Cannot pause allocation that is not active.", self.tag, storage)
        if self._backup:
            self._spill = _spill(_bytes_of(storage))
        _give_back(storage)
        self.state = State.PAUSED

    def resume(self, storage: UntypedStorage) -> None:
        """Every page is resident again; a call on an active allocation ends the process."""
        if self.state is not State.PAUSED:
            _die("Cannot resume allocation that is not paused. ", self.tag, storage)
        touch(storage)
        if self._spill is not None:
            _fill(_bytes_of(storage), self._spill)
            self.close()
        self.state = State.ACTIVE

    def close(self) -> None:
        """The backup, if there is one, is off the disk."""
        if self._spill is not None:
            os.close(self._spill)
            self._spill = None


def touch(storage: UntypedStorage) -> None:
    """Every page is resident, with the contents it had: on a GPU memory is there from its allocation on."""
    memory = _bytes_of(storage)
    for offset in range(0, len(memory), PAGE):
        memory[offset] = memory[offset]


def _give_back(storage: UntypedStorage) -> None:
    start, end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    first, last = -(-start // PAGE) * PAGE, end // PAGE * PAGE
    if first >= last:
        ctypes.memset(start, 0, end - start)
        return
    ctypes.memset(start, 0, first - start)
    ctypes.memset(last, 0, end - last)
    if _libc.madvise(first, last - first, MADV_DONTNEED):
        raise OSError(ctypes.get_errno(), "madvise")


def _bytes_of(storage: UntypedStorage) -> memoryview:
    """The storage's own bytes, not a copy."""
    array = (ctypes.c_ubyte * storage.nbytes()).from_address(storage.data_ptr())
    return memoryview(array).cast("B")


def _spill(memory: memoryview) -> int:
    """A file without a name holds the bytes; on disk, because a backup in this process would count as its memory."""
    descriptor, path = tempfile.mkstemp(prefix="memory-saver-")
    os.unlink(path)
    offset = 0
    while offset < len(memory):
        offset += os.pwrite(descriptor, memory[offset : offset + BLOCK], offset)
    return descriptor


def _fill(memory: memoryview, descriptor: int) -> None:
    offset = 0
    while offset < len(memory):
        read = os.preadv(descriptor, [memory[offset : offset + BLOCK]], offset)
        if not read:
            raise OSError("the backup is shorter than what it is a backup of")
        offset += read


def _die(complaint: str, tag: str, storage: UntypedStorage) -> NoReturn:
    """The process is gone, with what the real one prints: it calls `exit(1)` and raises nothing."""
    line = f"[torch_memory_saver.cpp] {complaint} tag={tag} ptr={storage.data_ptr()} size={storage.nbytes()}"
    print(line, file=sys.stderr, flush=True)
    os._exit(1)
