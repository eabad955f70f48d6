"""Counts what a cycle takes, exactly: HTTP calls, connections, SQLite transactions, files in /proc, awaits; by command.

What happens is told apart by time. A command has what happened since the command before it had ended on all engines,
until it has ended on all. All clocks here are that of `time.monotonic`, which the processes of a host share; a request
reaches its server after it was sent and before it was answered, so that no request is near a border.
"""

from __future__ import annotations

import asyncio
import collections.abc
import os
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lifecycle import BaseObserver, Command, Transition

CONNECT, AFTER = "connect", "after"
WALKS = "walks of the process table"
WRITES = ("INSERT", "UPDATE", "DELETE", "REPLACE", "CREATE", "DROP")


class Ends(BaseObserver):
    """Notes when each command has ended on the last engine."""

    def __init__(self) -> None:
        self.at_s: dict[str, float] = {}
        #: How far a count has come by then.
        self.so_far: dict[str, int] = {}
        self.count: Callable[[], int] = lambda: 0

    def start(self) -> None:
        """What comes is another cycle."""
        self.at_s, self.so_far = {}, {}

    def connected(self) -> None:
        """What happened until here is connect."""
        self._ended(CONNECT)

    def command_ended(
        self, engine: str, command: Command, result: Transition | BaseException, duration_s: float
    ) -> None:
        self._ended(command.name)

    def _ended(self, name: str) -> None:
        self.at_s.pop(name, None)  # the order is that of the last end
        self.at_s[name], self.so_far[name] = time.monotonic(), self.count()

    def command_at(self, at_s: float) -> str:
        """The command that something at this time belongs to."""
        return next((name for name, end in self.at_s.items() if at_s <= end), AFTER)

    def by_command(self, events: Sequence[tuple[float, str]]) -> dict[str, Counter[str]]:
        """How often each event happened, by command."""
        found: dict[str, Counter[str]] = {}
        for at_s, what in events:
            found.setdefault(self.command_at(at_s), Counter())[what] += 1
        return found


class Transactions:
    """SQLite transactions of every connection that is opened inside: those that were committed, and lone writes."""

    def __init__(self) -> None:
        self.events: list[tuple[float, str]] = []

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Inside, `sqlite3.connect` traces what its connections do."""
        real = sqlite3.connect

        def connect(*arguments: Any, **named: Any) -> sqlite3.Connection:
            db: sqlite3.Connection = real(*arguments, **named)
            inside = False

            def trace(statement: str) -> None:
                nonlocal inside
                word = statement.lstrip().partition(" ")[0].rstrip(";").upper()
                if word == "BEGIN":
                    inside = True
                elif word in ("COMMIT", "END", "ROLLBACK"):
                    inside = False
                if word in ("COMMIT", "END") or (word in WRITES and not inside):
                    self.events.append((time.monotonic(), "SQLite transactions"))

            db.set_trace_callback(trace)
            return db

        sqlite3.connect = connect  # type: ignore[assignment]
        try:
            yield
        finally:
            sqlite3.connect = real


class ProcFiles:
    """Files and folders of /proc that this process opens. Those of processes that are no engine are not counted.

    They are as many as the host has processes, or as there are above this one. That their table was walked is counted.
    """

    def __init__(self) -> None:
        self.events: list[tuple[float, str]] = []
        self.pids: frozenset[str] = frozenset()
        self._on = False
        sys.addaudithook(self._hear)  # cannot be taken out again

    @contextmanager
    def counted(self, pids: Sequence[int]) -> Iterator[None]:
        """Inside, what is opened is noted; `pids` are the engines'."""
        self.events, self.pids, self._on = [], frozenset(map(str, pids)), True
        try:
            yield
        finally:
            self._on = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on or event not in ("open", "os.listdir", "os.scandir"):
            return
        path = arguments[0]
        if isinstance(path, bytes):
            path = path.decode(errors="replace")
        if isinstance(path, os.PathLike):
            path = os.fspath(path)
        if not isinstance(path, str) or not path.startswith("/proc"):
            return
        name = self.name(path)
        if name:
            self.events.append((time.monotonic(), name))

    def name(self, path: str) -> str:
        """What it is counted as; nothing where it is about a process that is no engine."""
        parts = path.strip("/").split("/")[1:]
        if not parts:
            return WALKS
        if parts[0] in ("self", str(os.getpid()), "thread-self"):
            parts[0] = "self"
        elif parts[0] in self.pids:
            parts[0] = "ENGINE"
        elif parts[0].isdecimal() or parts == ["stat"]:  # psutil reads that one for each process above another
            return ""
        return "/proc/" + "/".join("N" if part.isdecimal() else part for part in parts)


class _Counted(collections.abc.Coroutine[Any, Any, Any]):
    """A coroutine whose every suspension is counted."""

    def __init__(self, inner: Any, count: Callable[[], None]) -> None:
        self._inner, self._count = inner, count

    def send(self, value: Any) -> Any:
        yielded = self._inner.send(value)
        self._count()
        return yielded

    def throw(self, *error: Any) -> Any:
        yielded = self._inner.throw(*error)
        self._count()
        return yielded

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Any:
        raise NotImplementedError


class Awaits:
    """How often coroutines of a loop's tasks were suspended."""

    def __init__(self) -> None:
        self.total = 0

    def count_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tasks that are made from here on count."""

        def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **named: Any) -> asyncio.Task[Any]:
            return asyncio.Task(_Counted(coroutine, self._one), loop=loop, **named)

        loop.set_task_factory(factory)

    def _one(self) -> None:
        self.total += 1


#: One hook for the whole process.
PROC = ProcFiles()
