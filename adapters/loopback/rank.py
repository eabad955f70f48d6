"""The process of a rank: it serves its parent's calls one after another and ends with it."""

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
    """Serves calls until the parent closes the connection."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; only the parent handles it
    connection = Connection(int(sys.argv[1]))
    try:
        serve(connection, RankWorker(connection.recv()))
    except (EOFError, OSError):
        os._exit(0)  # the parent has ended, so no process waits for an answer


def serve(connection: Connection, worker: RankWorker) -> None:
    """Answers each call with the pair (failed, value), for ever."""
    while True:
        method, arguments = connection.recv()
        connection.send(_call(worker, method, arguments))


def _call(worker: RankWorker, method: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    try:
        return False, getattr(worker, method)(*arguments)
    except Exception as error:
        return True, f"{type(error).__name__}: {error}"


def die_with_parent() -> None:
    """Has the kernel send this process SIGKILL when the thread that started it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
