"""The pipeline-parallel ranks of one scheduler: one rank in this process, or several in a child process each."""

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
    from .model import Choice, Chunk
    from .shape import RankConfig


class RankFailed(RuntimeError):
    """A rank raised an exception, or its process has ended."""


class RankEnded(RankFailed):
    """Its process has ended."""


class Rank(Protocol):
    """One rank. A call is submitted, and its result collected later; results come in the order of the calls."""

    def submit(self, method: str, *arguments: Any) -> None: ...

    def collect(self) -> Any: ...


class LocalRank:
    """The rank of a pipeline of one, in this process."""

    def __init__(self, config: RankConfig) -> None:
        from .worker import RankWorker

        self._worker = RankWorker(config)
        self._result: Any = None

    def submit(self, method: str, *arguments: Any) -> None:
        self._result = getattr(self._worker, method)(*arguments)

    def collect(self) -> Any:
        return self._result


class RemoteRank:
    """A rank in a child process, which receives calls over a socket pair."""

    def __init__(self, config: RankConfig) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # A new interpreter, not a fork: a fork of a process with threads may deadlock.
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.rank", str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        self._connection = Connection(ours.detach())
        self._connection.send(config)

    def submit(self, method: str, *arguments: Any) -> None:
        try:
            self._connection.send((method, arguments))
        except OSError as error:
            raise RankEnded(f"rank process {self.process.pid} has ended") from error

    def collect(self) -> Any:
        try:
            failed, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise RankEnded(f"rank process {self.process.pid} has ended") from error
        if failed:
            raise RankFailed(value)
        return value

    def kill(self) -> None:
        """Sends SIGKILL to the process."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)


class Pipeline:
    """All ranks in order. Each passes its hidden states to the next."""

    def __init__(self, config: RankConfig) -> None:
        began = time.monotonic()
        configs = [replace(config, rank=rank) for rank in range(config.ranks)]
        self.children = [RemoteRank(each) for each in configs] if config.ranks > 1 or config.in_child else []
        self._ranks: Sequence[Rank] = self.children or [LocalRank(configs[0])]
        self.allocation_s = time.monotonic() - began

    @property
    def size(self) -> int:
        return len(self._ranks)

    @property
    def pids(self) -> list[int]:
        """The process of each rank, in the order of the ranks."""
        return [child.process.pid for child in self.children] or [os.getpid()]

    def forward(self, chunks: Sequence[Chunk]) -> list[Choice | None]:
        """Each row's next token; None for a row of which a part of the prompt is still to be computed."""
        states: list[Any] = [None] * len(chunks)
        for rank in self._ranks:
            rank.submit("forward", chunks, states)
            states = rank.collect()
        return states

    def collective_rpc(self, method: str, *arguments: Any) -> list[Any]:  # [ranks]
        """Calls a method on all ranks at once; returns their results in the order of the ranks."""
        for rank in self._ranks:
            rank.submit(method, *arguments)
        return [rank.collect() for rank in self._ranks]

    def watch(self, on_death: Callable[[str], None]) -> None:
        """Calls `on_death`, from a thread, when a rank process ends."""
        for child in self.children:
            threading.Thread(target=_report_end, args=(child, on_death), daemon=True).start()

    def kill(self) -> None:
        """Sends SIGKILL to every rank process."""
        for child in self.children:
            child.kill()


def _report_end(child: RemoteRank, on_death: Callable[[str], None]) -> None:
    code = child.process.wait()
    on_death(f"rank process {child.process.pid} ended with {code}")
