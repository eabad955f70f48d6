"""What a cycle takes is no more than was committed: calls, connections, transactions, files of /proc, awaits."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import counting
import counts
import pytest

#: Now, committed, and whether that is a failure.
RACES = (
    ((3, 9), (1, 3), False),
    ((5, 9), (1, 3), False),
    ((6, 9), (1, 3), True),
    ((5, 5), (1, 3), False),
    ((6, 6), (1, 3), True),
    ((4, 4), (3, 3), True),
    ((66, 70), (50, 60), False),
    ((67, 70), (50, 60), True),
)
BEFORE = {"1 engine": {"pause": {"GET /ready": (2, 2), "connections": (6, 6)}, "drain": {"GET /ping": (1, 3)}}}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_cycle_takes_no_more_than_was_committed() -> None:
    command = [sys.executable, str(Path(counts.__file__).with_name("bench.py")), "--counts"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_more_is_named_by_command_and_call() -> None:
    now = {"1 engine": {"pause": {"GET /ready": (3, 3), "connections": (6, 6)}, "drain": {"GET /ping": (1, 1)}}}
    assert counts.compared(now, BEFORE) == (["1 engine: pause: GET /ready: 3, committed 2"], [])


def test_a_call_that_was_never_made_before_is_more() -> None:
    now = {"1 engine": {**BEFORE["1 engine"], "resume": {"POST /generate": (1, 1)}}}
    assert counts.compared(now, BEFORE) == (["1 engine: resume: POST /generate: 1, committed 0"], [])


def test_fewer_is_told_and_is_no_failure() -> None:
    now = {"1 engine": {"pause": {"GET /ready": (1, 1)}, "drain": {"GET /ping": (0, 0)}}}
    more, fewer = counts.compared(now, BEFORE)
    assert more == []
    assert fewer == [
        "1 engine: pause: GET /ready: 1, committed 2",
        "1 engine: pause: connections: 0, committed 6",
    ]


@pytest.mark.parametrize(("now", "before", "fails"), RACES)
def test_what_varies_may_be_a_little_more(now: tuple[int, int], before: tuple[int, int], fails: bool) -> None:
    more, _ = counts.compared({"e": {"drain": {"a": now}}}, {"e": {"drain": {"a": before}}})
    assert bool(more) is fails


def test_fewer_of_what_varies_is_told_where_it_is_much() -> None:
    before = {"e": {"drain": {"a": (10, 14)}}}
    assert counts.compared({"e": {"drain": {"a": (6, 8)}}}, before) == ([], [])
    assert counts.compared({"e": {"drain": {"a": (6, 7)}}}, before) == ([], ["e: drain: a: 6 to 7, committed 10 to 14"])


def test_what_is_written_is_read_again() -> None:
    assert counts.from_text(counts.as_text(BEFORE)) == BEFORE


def test_awaits_of_another_python_and_files_of_another_kernel_are_not_compared() -> None:
    both = {
        "e": {"pause": {"awaits": (7, 7), "/proc/ENGINE/stat": (1, 1), counting.WALKS: (1, 1), "GET /ready": (1, 1)}}
    }
    here = counts.where()
    assert counts.comparable(both, here, here) == both
    other = {"python": "2.7", "children in /proc": not here["children in /proc"]}
    assert counts.comparable(both, here, other) == {"e": {"pause": {"GET /ready": (1, 1)}}}


def test_transactions_are_commits_and_lone_writes(tmp_path: Path) -> None:
    transactions = counting.Transactions()
    with transactions.counted():
        db = sqlite3.connect(tmp_path / "file", isolation_level=None)
    db.execute("CREATE TABLE t (a)")
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO t VALUES (1)")
    db.execute("INSERT INTO t VALUES (2)")
    db.execute("COMMIT")
    db.execute("BEGIN")
    db.execute("DELETE FROM t")
    db.execute("ROLLBACK")
    db.execute("SELECT * FROM t").fetchall()
    db.execute("UPDATE t SET a = 3")
    db.close()
    assert [what for _, what in transactions.events] == ["SQLite transactions"] * 3


def test_files_of_proc_are_those_of_engines_and_of_this_process() -> None:
    files = counting.PROC
    with files.counted([7]):
        assert files.name("/proc/7/smaps_rollup") == "/proc/ENGINE/smaps_rollup"
        assert files.name("/proc/8/stat") == ""
        assert files.name("/proc/stat") == "", "it is read for each process above this one"
        assert files.name("/proc/7/task/7/children") == "/proc/ENGINE/task/N/children"
        assert files.name(f"/proc/{os.getpid()}/stat") == "/proc/self/stat"
        os.listdir("/proc")
        Path("/proc/meminfo").read_text()
    Path("/proc/meminfo").read_text()
    assert [what for _, what in files.events] == [counting.WALKS, "/proc/meminfo"]


async def test_awaits_are_suspensions() -> None:
    awaits, loop = counting.Awaits(), asyncio.get_running_loop()
    awaits.count_in(loop)

    async def twice() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    await asyncio.ensure_future(twice())
    loop.set_task_factory(None)
    assert awaits.total == 2


def test_what_happens_belongs_to_the_command_that_ends_next() -> None:
    ends = counting.Ends()
    ends.at_s = {"pause": 1.0, "drain": 2.0}
    events = [(0.5, "a"), (1.0, "a"), (1.5, "a"), (2.5, "b")]
    assert ends.by_command(events) == {"pause": {"a": 2}, "drain": {"a": 1}, counting.AFTER: {"b": 1}}
