"""Room on the disk that is kept for the end of a command.

A command whose calls must be written down, and that finds the disk full in the middle, would have to stop there. So a
file of this size lies beside the store. It is deleted when the disk is full, and the command goes on to its end. The
next one is refused before it begins, unless the file can be made again.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from pathlib import Path

from ..core.units import MIB, mib

#: Enough for what one command of 100 engines writes: rows of some 4 KiB, each twice a call, and entries.
RESERVE_BYTES = 4 * MIB


class Reserve:
    """The file beside the store at `path`."""

    def __init__(self, path: Path, size_bytes: int = RESERVE_BYTES) -> None:
        self.path = path.with_name(f"{path.name}.reserve")
        self._size_bytes = size_bytes

    def hold(self) -> None:
        """The file is there. Raises OSError where it cannot be made."""
        try:
            if self.path.stat().st_size >= self._size_bytes:
                return
        except FileNotFoundError:
            pass
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self._size_bytes)
        except OSError as error:
            self.path.unlink(missing_ok=True)
            why = f"no {mib(self._size_bytes)} are left for the end of a command"
            raise OSError(error.errno, f"{why} ({error.strerror})", str(self.path)) from None
        finally:
            os.close(descriptor)

    def give_up(self) -> bool:
        """The file was deleted, so that its room can be written to; False where it was not there."""
        try:
            self.path.unlink()
        except OSError:
            return False
        log = logging.getLogger("lifecycle")
        log.warning(
            "%s: the disk is full; what was reserved is used to end the command, and no other begins", self.path
        )
        return True


def disk_is_full(error: BaseException | None) -> bool:
    """Whether this is what SQLite, or the operating system, says of a full disk."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
