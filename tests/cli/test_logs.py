"""`lifecycle logs --follow` in a process of its own: while others write, until it is interrupted or nobody reads."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from journal_files import Driven, noted_in

from lifecycle import State
from lifecycle.core.journal import (
    BarrierReturned,
    CommandBegan,
    Entry,
)
from lifecycle.store.sqlite import Store

# logs


class Reader:
    """The lines that a process prints, as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._lines: queue.Queue[str] = queue.Queue()
        self._thread = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        self._thread.start()

    def _read(self, stdout: Iterable[str]) -> None:
        with suppress(ValueError):  # the test has ended, and closed it
            for line in stdout:
                self._lines.put(line.rstrip("\n"))

    def next(self, deadline_s: float = 20.0) -> str:
        """The next line; it fails the test where none comes in time."""
        try:
            return self._lines.get(timeout=deadline_s)
        except queue.Empty:
            pytest.fail(f"nothing was printed within {deadline_s} s")

    def rest(self) -> list[str]:
        """What was not asked for, once the process has ended."""
        self._thread.join(20)
        return list(self._lines.queue)


@contextmanager
def started(state: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on by itself; it is killed where the test fails."""
    command = [sys.executable, "-m", "lifecycle", *arguments]
    environment = {**os.environ, "LIFECYCLE_STATE_DIR": str(state)}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has it ignored
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_logs_follow_what_any_process_writes(lifecycle_process, address: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "engines.sqlite3")
    with closing(store), started(tmp_path, "logs", "--follow", "--json") as process:
        reader = Reader(process)
        for number in (1, 2, 3):  # the first perhaps before it looks, the others while it does
            store.journal.note([Entry(BarrierReturned(), time.time(), "t1", "e", "host:1")])
            assert json.loads(reader.next())["number"] == number
        assert lifecycle_process("status", address, state=tmp_path).returncode == 0  # it looks, and writes nothing
        assert lifecycle_process("recover", address, "--engines", address, state=tmp_path).returncode == 0
        told = [reader.next() for _ in range(4)]
        assert [json.loads(line)["type"] for line in told] == ["Attached", *["StateEntered"] * 3]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
        assert reader.rest() == []


def test_logs_follow_only_what_is_asked_for(tmp_path: Path) -> None:
    store = Store(tmp_path / "engines.sqlite3")
    with closing(store), started(tmp_path, "logs", "--follow", "--kind", "CommandBegan", "--engines", "e") as process:
        for engine, event in (("e", BarrierReturned()), ("f", CommandBegan("drain", State.PAUSED))):
            store.journal.note([Entry(event, time.time(), "t1", engine, f"host:{engine}")])
        store.journal.note([Entry(CommandBegan("pause", State.SERVING), time.time(), "t1", "e", "host:e")])
        assert Reader(process).next().endswith("  e  pause begins, in serving")


@pytest.mark.parametrize("command", ["history", "logs"])
def test_a_reader_that_goes_away_changes_nothing(driven: Driven, tmp_path: Path, command: str) -> None:
    with started(tmp_path, command, "--json", "--file", str(driven.path)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


def test_logs_end_when_their_reader_has_gone(tmp_path: Path) -> None:
    noted_in(tmp_path, Entry(BarrierReturned(), time.time(), "t1", "e", "host:1"))
    with started(tmp_path, "logs", "--follow") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().endswith("its barrier has returned\n")
        process.stdout.close()  # nothing more is written into the journal, and so nothing is printed
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


def test_logs_end_where_they_cannot_be_written(tmp_path: Path) -> None:
    noted_in(tmp_path, Entry(BarrierReturned(), time.time(), "t1", "e", "host:1"))
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "lifecycle", "logs", "--follow", "--file", tmp_path / "engines.sqlite3"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=20,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (1, "lifecycle: standard output: No space left on device\n")


def test_logs_wait_for_the_first_driver(tmp_path: Path) -> None:
    with started(tmp_path, "logs", "--follow") as process:
        assert process.stderr is not None
        assert "there is no journal yet" in process.stderr.readline()
        noted_in(tmp_path, Entry(BarrierReturned(), time.time(), "t1", "e", "host:1"))
        assert Reader(process).next().endswith("  e  its barrier has returned")
