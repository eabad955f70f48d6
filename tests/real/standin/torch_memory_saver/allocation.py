"""Returns the memory of one tensor to the operating system, and makes it resident again.

Pages are returned with `madvise(MADV_DONTNEED)`: private anonymous memory is no longer resident, and reads as zeros
afterwards. Only whole pages can be returned. The bytes of a tensor in the pages at its two ends, which it shares with
other memory, are set to zero.
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
BLOCK = 64 << 20  # bytes in one write or read of the backup

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class State(enum.Enum):
    """Whether the memory is resident."""

    ACTIVE = "active"
    PAUSED = "paused"


class Allocation:
    """The memory of one storage: resident while ACTIVE, returned to the operating system while PAUSED.

    No reference to the storage is kept between calls, so that it is freed when the server drops it.
    """

    def __init__(self, tag: str, *, backup: bool) -> None:
        self.tag = tag
        self.state = State.ACTIVE
        self._backup = backup
        self._spill: int | None = None

    def pause(self, storage: UntypedStorage) -> None:
        """Returns the pages to the operating system. A call on a paused allocation exits the process."""
        if self.state is not State.ACTIVE:
            _exit("Cannot pause allocation that is not active.", self.tag, storage)
        if self._backup:
            self._spill = _spill(_bytes_of(storage))
        _give_back(storage)
        self.state = State.PAUSED

    def resume(self, storage: UntypedStorage) -> None:
        """Makes every page resident again. A call on an active allocation exits the process."""
        if self.state is not State.PAUSED:
            _exit("Cannot resume allocation that is not paused. ", self.tag, storage)
        touch(storage)
        if self._spill is not None:
            _fill(_bytes_of(storage), self._spill)
            self.close()
        self.state = State.ACTIVE

    def close(self) -> None:
        """Deletes the backup, if there is one."""
        if self._spill is not None:
            os.close(self._spill)
            self._spill = None


def touch(storage: UntypedStorage) -> None:
    """Makes every page resident without changing it, as memory on a GPU is from its allocation on."""
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
    """Writes the bytes to an unlinked file. A backup in this process would count as its memory."""
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
            raise OSError("the backup is shorter than the memory")
        offset += read


def _exit(message: str, tag: str, storage: UntypedStorage) -> NoReturn:
    """Prints what the real package prints and exits with status 1, as it does; no exception is raised."""
    line = f"[torch_memory_saver.cpp] {message} tag={tag} ptr={storage.data_ptr()} size={storage.nbytes()}"
    print(line, file=sys.stderr, flush=True)
    os._exit(1)
