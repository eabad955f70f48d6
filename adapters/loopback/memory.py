"""Memory whose pages can be returned to the operating system and made resident again at the same addresses.

It has the place of torch_memory_saver in SGLang. Mappings are anonymous and private, since MADV_DONTNEED frees nothing
of a shared mapping.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

PAGE = mmap.PAGESIZE
_MADV_NOHUGEPAGE = 15  # huge pages would make the measured sizes coarse
_MADV_POPULATE_WRITE = 23  # Linux 5.14


class MemorySaverError(RuntimeError):
    """A tag was paused twice, or resumed while not paused. torch_memory_saver exits the process then."""


class Region:
    """An anonymous private mapping, all of whose pages are resident at first."""

    def __init__(self, size: int) -> None:
        self.size = -(-size // PAGE) * PAGE
        self._map = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(_MADV_NOHUGEPAGE)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)
        self.touch()

    def touch(self) -> None:
        """Makes every page resident; contents stay."""
        try:
            self._map.madvise(_MADV_POPULATE_WRITE)
        except OSError:
            self.bytes[::PAGE] += np.uint8(0)

    def drop(self, *, keep_bytes: int = 0) -> None:
        """Returns the pages after the first `keep_bytes` to the operating system; they then read as zeros."""
        start = min(-(-keep_bytes // PAGE) * PAGE, self.size)
        if start < self.size:
            self._map.madvise(mmap.MADV_DONTNEED, start, self.size - start)

    def buffer(self, start: int, size: int) -> memoryview:
        """A writable view of `size` bytes from `start`."""
        return self.bytes.data[start : start + size]


class HostBackup:
    """A copy of a region in memory of the host that no process maps.

    A release is measured by the memory of the process. A copy inside that memory would hide it; one that is not mapped
    does not count. All of it is allocated at once: a first save that has to find pages takes several times as long as
    a later one, and on a disk as long as the disk makes it wait.
    """

    def __init__(self, size: int) -> None:
        self._file: IO[bytes] = os.fdopen(os.memfd_create("loopback-backup"), "w+b", buffering=0)
        os.posix_fallocate(self._file.fileno(), 0, size)

    def save(self, region: Region) -> None:
        """Copies the region's bytes."""
        write_from(self._file.fileno(), region.buffer(0, region.size), 0)

    def restore(self, region: Region) -> None:
        """Copies the bytes back into the region."""
        read_into(self._file.fileno(), region.buffer(0, region.size), 0)


def write_from(fd: int, source: memoryview, offset: int) -> None:
    """Writes all of `source` to the file at `offset`."""
    done = 0
    while done < len(source):
        done += os.pwrite(fd, source[done:], offset + done)


def read_into(fd: int, target: memoryview, offset: int) -> None:
    """Fills `target` from the file at `offset`, without mapping the file. Raises OSError where the file is shorter."""
    done = 0
    while done < len(target):
        count = os.preadv(fd, [target[done:]], offset + done)
        if not count:
            raise OSError(f"the file ends {len(target) - done} bytes early")
        done += count


class Saver(Protocol):
    """Releases and restores the pages of a tag on one rank."""

    def pause(self, tag: str, *, keep_bytes: int = 0, backup: bool = True) -> None: ...

    def resume(self, tag: str, *, zeros: bool = False) -> None: ...

    def paused(self) -> frozenset[str]: ...


class NoSaver:
    """Does nothing, and reports success.

    Source: sglang 0.5.23, utils/torch_memory_saver_adapter.py: without --enable-memory-saver the adapter is a no-op.
    """

    def pause(self, tag: str, *, keep_bytes: int = 0, backup: bool = True) -> None:
        """Does nothing."""

    def resume(self, tag: str, *, zeros: bool = False) -> None:
        """Does nothing."""

    def paused(self) -> frozenset[str]:
        """No tag is ever paused."""
        return frozenset()


class MemorySaver:
    """Pauses and resumes tags, each in turn. A tag without memory on this rank is accepted and has no effect."""

    def __init__(self, regions: Mapping[str, Region], *, backed_up: frozenset[str]) -> None:
        self._regions = regions
        self._backups = {tag: HostBackup(regions[tag].size) for tag in backed_up}
        self._paused: set[str] = set()
        self._saved: set[str] = set()

    def pause(self, tag: str, *, keep_bytes: int = 0, backup: bool = True) -> None:
        """Returns the tag's pages to the operating system; a backed-up tag is saved before, unless not `backup`."""
        if tag not in self._regions:
            return
        if tag in self._paused:
            raise MemorySaverError(f"Cannot pause allocation that is not active: {tag}")
        self._paused.add(tag)
        if backup and tag in self._backups:
            self._backups[tag].save(self._regions[tag])
            self._saved.add(tag)
        self._regions[tag].drop(keep_bytes=keep_bytes)

    def resume(self, tag: str, *, zeros: bool = False) -> None:
        """Makes the tag's pages resident with zeros; a backed-up tag gets what was saved unless `zeros`."""
        if tag not in self._regions:
            return
        if tag not in self._paused:
            raise MemorySaverError(f"Cannot resume allocation that is not paused: {tag}")
        self._paused.remove(tag)
        region = self._regions[tag]
        region.drop()  # discards what a request wrote here meanwhile, as a device does when it maps new memory
        region.touch()
        if tag in self._saved and not zeros:
            self._backups[tag].restore(region)
        self._saved.discard(tag)

    def paused(self) -> frozenset[str]:
        """The tags that are paused."""
        return frozenset(self._paused)
