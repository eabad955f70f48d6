"""The ranks behind one scheduler: in this process, or one child process each."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .model import Chunk
    from .shape import RankConfig


class RankFailed(RuntimeError):
    """A rank raised, or is no more."""


class Rank(Protocol):
    """One rank: a call is submitted, its result is collected later, in order."""

    def submit(self, method: str, *arguments: Any) -> None: ...

    def collect(self) -> Any: ...


class LocalRank:
    """The only rank, in this process."""

    def __init__(self, config: RankConfig) -> None:
        from .worker import RankWorker

        self._worker = RankWorker(config)
        self._result: Any = None

    def submit(self, method: str, *arguments: Any) -> None:
        self._result = getattr(self._worker, method)(*arguments)

    def collect(self) -> Any:
        return self._result


class RemoteRank:
    """A rank in a child process of its own, spoken to over a socket pair."""

    def __init__(self, config: RankConfig) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # A fresh interpreter, never a fork: this process will have threads.
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.rank", str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        self._connection = Connection(ours.detach())
        self._connection.send(config)

    def submit(self, method: str, *arguments: Any) -> None:
        try:
            self._connection.send((method, arguments))
        except OSError as error:
            raise RankFailed(f"rank process {self.process.pid} is gone") from error

    def collect(self) -> Any:
        try:
            failed, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise RankFailed(f"rank process {self.process.pid} is gone") from error
        if failed:
            raise RankFailed(value)
        return value

    def kill(self) -> None:
        """The process was sent SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)


class Pipeline:
    """All ranks in order: hidden states go from each to the next."""

    def __init__(self, config: RankConfig) -> None:
        began = time.monotonic()
        configs = [replace(config, rank=rank) for rank in range(config.ranks)]
        self.children = [RemoteRank(each) for each in configs] if config.ranks > 1 else []
        self._ranks: Sequence[Rank] = self.children or [LocalRank(configs[0])]
        self.allocation_s = time.monotonic() - began

    @property
    def size(self) -> int:
        return len(self._ranks)

    @property
    def pids(self) -> list[int]:
        """The processes that hold the memory, by rank."""
        return [child.process.pid for child in self.children] or [os.getpid()]

    def forward(self, chunks: Sequence[Chunk]) -> list[int | None]:
        """Each row's next token, or None where its chunk is not its last."""
        states: list[Any] = [None] * len(chunks)
        for rank in self._ranks:
            rank.submit("forward", chunks, states)
            states = rank.collect()
        return states

    def each(self, method: str, *arguments: Any) -> list[Any]:  # [ranks]
        """Every rank's result of one call, made on all at once."""
        for rank in self._ranks:
            rank.submit(method, *arguments)
        return [rank.collect() for rank in self._ranks]

    def watch(self, on_death: Callable[[str], None]) -> None:
        """`on_death` is called as soon as a rank process ends, idle or not."""
        for child in self.children:
            threading.Thread(target=_report_end, args=(child, on_death), daemon=True).start()

    def kill(self) -> None:
        """Every rank process was sent SIGKILL."""
        for child in self.children:
            child.kill()


def _report_end(child: RemoteRank, on_death: Callable[[str], None]) -> None:
    code = child.process.wait()
    on_death(f"rank process {child.process.pid} ended with {code}")
