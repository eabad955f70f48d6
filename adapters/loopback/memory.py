"""Memory that can be given back to the operating system and taken again, at the same addresses.

Stands where torch_memory_saver stands for SGLang. Pages are anonymous and private: on a shared mapping MADV_DONTNEED
frees nothing.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Mapping
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

PAGE = mmap.PAGESIZE
_MADV_NOHUGEPAGE = 15  # whole huge pages would make the figures coarse
_MADV_POPULATE_WRITE = 23  # Linux 5.14


class MemorySaverError(RuntimeError):
    """What makes torch_memory_saver exit: a pause or resume in the wrong order."""


class Region:
    """Anonymous private pages, all of them resident once built."""

    def __init__(self, size: int) -> None:
        self.size = -(-size // PAGE) * PAGE
        self._map = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(_MADV_NOHUGEPAGE)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)
        self.touch()

    def touch(self) -> None:
        """Every page is resident; contents stay."""
        try:
            self._map.madvise(_MADV_POPULATE_WRITE)
        except OSError:
            self.bytes[::PAGE] += np.uint8(0)

    def drop(self, *, keep_bytes: int = 0) -> None:
        """The pages after the first `keep_bytes` are the operating system's again, and read as zeros."""
        start = min(-(-keep_bytes // PAGE) * PAGE, self.size)
        if start < self.size:
            self._map.madvise(mmap.MADV_DONTNEED, start, self.size - start)

    def buffer(self, start: int, size: int) -> memoryview:
        """A writable window of the region."""
        return self.bytes.data[start : start + size]


class HostBackup:
    """A copy of a region in an unlinked file.

    Outside the process's memory, as a GPU's host backup is outside the device: inside, a release would free nothing.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="loopback-backup-")  # noqa: SIM115 - lives as long as the rank

    def save(self, region: Region) -> None:
        """The file holds the region's bytes."""
        done = 0
        while done < region.size:
            done += os.pwrite(self._file.fileno(), region.buffer(done, region.size - done), done)

    def restore(self, region: Region) -> None:
        """The region holds the file's bytes."""
        read_into(self._file.fileno(), region.buffer(0, region.size), 0)


def read_into(fd: int, target: memoryview, offset: int) -> None:
    """`target` is filled from the file at `offset`, without a mapping of the file."""
    done = 0
    while done < len(target):
        count = os.preadv(fd, [target[done:]], offset + done)
        if not count:
            raise OSError(f"the file ends {len(target) - done} bytes early")
        done += count


class Saver(Protocol):
    """What releases and restores one tag's pages on one rank."""

    def pause(self, tag: str, *, keep_bytes: int = 0) -> None: ...

    def resume(self, tag: str, *, zeros: bool = False) -> None: ...


class NoSaver:
    """Answers as if, and frees nothing.

    Source: sglang 0.5.23, utils/torch_memory_saver_adapter.py: without --enable-memory-saver the adapter is a no-op.
    """

    def pause(self, tag: str, *, keep_bytes: int = 0) -> None:
        """Nothing changes."""

    def resume(self, tag: str, *, zeros: bool = False) -> None:
        """Nothing changes."""


class MemorySaver:
    """Tags paused and resumed strictly in turn; a tag without memory here is accepted and does nothing."""

    def __init__(self, regions: Mapping[str, Region], *, backed_up: frozenset[str]) -> None:
        self._regions = regions
        self._backups = {tag: HostBackup() for tag in backed_up}
        self._paused: set[str] = set()

    def pause(self, tag: str, *, keep_bytes: int = 0) -> None:
        """The tag's pages are given back; with a backup their contents are in it."""
        if tag not in self._regions:
            return
        if tag in self._paused:
            raise MemorySaverError(f"Cannot pause allocation that is not active: {tag}")
        self._paused.add(tag)
        if tag in self._backups:
            self._backups[tag].save(self._regions[tag])
        self._regions[tag].drop(keep_bytes=keep_bytes)

    def resume(self, tag: str, *, zeros: bool = False) -> None:
        """The tag's pages are resident and new; with a backup they hold what was saved."""
        if tag not in self._regions:
            return
        if tag not in self._paused:
            raise MemorySaverError(f"Cannot resume allocation that is not paused: {tag}")
        self._paused.remove(tag)
        region = self._regions[tag]
        region.drop()  # what a request wrote here in between is lost, as on a device where new memory is mapped
        region.touch()
        if tag in self._backups and not zeros:
            self._backups[tag].restore(region)
