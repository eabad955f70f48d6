"""A rank's process: serves its parent's calls one after another, and does not outlive it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from .worker import RankWorker

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Calls have been served until the parent closed the pipe."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    connection = Connection(int(sys.argv[1]))
    try:
        serve(connection, RankWorker(connection.recv()))
    except (EOFError, OSError):
        os._exit(0)  # the parent is gone: nobody is left to tell


def serve(connection: Connection, worker: RankWorker) -> None:
    """Each call received was answered with (failed, value)."""
    while True:
        method, arguments = connection.recv()
        connection.send(_call(worker, method, arguments))


def _call(worker: RankWorker, method: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    try:
        return False, getattr(worker, method)(*arguments)
    except Exception as error:
        return True, f"{type(error).__name__}: {error}"


def die_with_parent() -> None:
    """The kernel sends this process SIGKILL when the thread that started it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
