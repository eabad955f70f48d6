"""Trees of processes: the children of each thread and the whole table say the same, and neither misses a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest

from lifecycle.nodes import process_table
from lifecycle.nodes.process_table import above, entry, table, trees
from lifecycle.nodes.processes import by_pid, is_alive, pids_of_trees, process_trees, start_mark

#: A process below which two are: one was begun by its first thread, the other by another thread that lives on.
FAMILY = """
import subprocess, sys, threading
def begin():
    waits.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
    begun.set()
    threading.Event().wait()
waits, begun = [], threading.Event()
threading.Thread(target=begin, daemon=True).start()
begun.wait()
waits.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
print(*(each.pid for each in waits), flush=True)
input()
for each in waits:
    each.communicate(b"\\n")
"""


@pytest.fixture
def family() -> Iterator[tuple[int, int, int]]:
    """The pids of a process and of the two below it, that of the second thread first."""
    command = [sys.executable, "-c", FAMILY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        one, other = map(int, process.stdout.readline().split())
        yield process.pid, one, other
        process.communicate("\n", timeout=10)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many processes each reading of the whole table found."""
    read: list[int] = []

    def counted() -> Any:
        found = table()
        read.append(len(found))
        return found

    monkeypatch.setattr(process_table, "table", counted)
    return read


def test_children_of_every_thread_are_in_the_tree(family: tuple[int, int, int], tables: list[int]) -> None:
    assert pids_of_trees([by_pid(family[0])]) == set(family)
    assert not tables, "one tree is listed by its children"
    assert process_trees([by_pid(family[0])]) == tuple(map(by_pid, [family[0], *sorted(family[1:])]))


def test_without_children_files_the_table_says_the_same(
    family: tuple[int, int, int], tables: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_table, "CHILDREN", False)
    assert pids_of_trees([by_pid(family[0])]) == set(family)
    assert len(tables) == 1


def test_without_files_psutil_says_the_same(family: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_table, "PROC", False)
    monkeypatch.setattr(process_table, "CHILDREN", False)
    assert set(trees([(by_pid(family[0]),)]).popitem()[1]) == set(family)
    assert entry(1 << 22) is None


def test_a_child_that_was_reaped_while_the_children_were_listed(
    family: tuple[int, int, int], tables: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may then skip others: what is listed here is one that has ended, and one of the two is left out."""
    real, root = process_table.content_of, by_pid(family[0])

    def one_skipped(path: str) -> bytes:
        found = real(path)
        return found.replace(str(family[1]).encode(), str(1 << 22).encode()) if path.endswith("children") else found

    monkeypatch.setattr(process_table, "content_of", one_skipped)
    assert pids_of_trees([root]) == set(family)
    assert len(tables) == 1


def test_a_child_that_is_anothers_by_now(
    family: tuple[int, int, int], tables: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pid that was used again between the listing and the look."""
    real, root = process_table.content_of, by_pid(family[0])
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:

        def another(path: str) -> bytes:
            found = real(path)
            mine = str(family[1]).encode()
            return found.replace(mine, str(stranger.pid).encode()) if path.endswith("children") else found

        monkeypatch.setattr(process_table, "content_of", another)
        assert pids_of_trees([root]) == set(family)
        assert len(tables) == 1
        stranger.communicate(b"\n")


def test_a_thread_that_ended_meanwhile_leaves_its_children_to_another(
    family: tuple[int, int, int], tables: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those had been listed before: so the threads are listed again, and here the second one is gone by then."""
    root, asked, real = by_pid(family[0]), [], os.listdir

    def listdir(path: str) -> list[str]:
        found = real(path)
        if path == f"/proc/{root.pid}/task":
            asked.append(path)
            return found if len(asked) == 1 else found[:1]
        return found

    monkeypatch.setattr(os, "listdir", listdir)
    assert pids_of_trees([root]) == set(family)
    assert (len(asked), len(tables)) == (2, 1)


def test_a_root_that_ends_while_it_is_listed(family: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    real, gone = process_table.content_of, by_pid(family[0])

    def ended(path: str) -> bytes:
        if path.endswith("children"):
            raise FileNotFoundError(path)
        return real(path)

    monkeypatch.setattr(process_table, "content_of", ended)
    assert pids_of_trees([gone]) == set(family), "the table is read instead"


@pytest.mark.parametrize("processes", [2, 9])
def test_no_tree_costs_more_than_the_table(
    family: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """Two threads, and a child of each: one look, a folder and two files, and at least three a child."""
    root = by_pid(family[0])
    every = process_table._pids()
    monkeypatch.setattr(process_table, "_pids", lambda: every[:processes])
    assert process_table._walk({root.pid}) is None
    monkeypatch.setattr(process_table, "_pids", lambda: every)
    assert process_table._walk({root.pid}) is not None


def test_many_trees_are_listed_by_one_reading_of_the_table(tables: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the children of each it would be more: so many are not tried that way first."""
    mine = by_pid(os.getpid())
    asked = [(by_pid(pid),) for pid in process_table._pids() if entry(pid) is not None]
    read: list[str] = []
    real = process_table.content_of
    monkeypatch.setattr(process_table, "content_of", lambda path: read.append(path) or real(path))
    found = trees([*asked, (mine,)])
    assert len(tables) == 1
    assert found[(mine,)][mine.pid] == mine
    assert all(path.endswith("stat") for path in read)
    assert len(read) == len(set(read)), "each process once"


def test_a_child_that_began_before_the_root_is_another_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parent had the pid of the root before."""
    root = by_pid(os.getpid())
    me = entry(root.pid)
    assert me is not None
    older, younger = (me._replace(pid=pid, parent=me.pid, ticks=me.ticks + by) for pid, by in ((901, -1), (902, 0)))
    monkeypatch.setattr(process_table, "CHILDREN", False)
    monkeypatch.setattr(process_table, "table", lambda: {each.pid: each for each in (me, older, younger)})
    assert pids_of_trees([root]) == {root.pid, 902}


def test_what_has_ended_has_no_tree() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = by_pid(child.pid)
    assert is_alive(process)
    assert not pids_of_trees([replace(process, start_time=process.start_time - 1)]), "its pid is another's"
    assert child.stdin is not None
    child.stdin.close()
    deadline = time.monotonic() + 10
    while (each := entry(child.pid)) is not None and each.state != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert by_pid(child.pid) == process, "nobody has waited for it"
    assert not is_alive(process)
    assert not pids_of_trees([process])
    assert not start_mark(child.pid)
    child.wait()
    assert not is_alive(process)
    with pytest.raises(psutil.NoSuchProcess):
        by_pid(child.pid)


def test_those_above_are_looked_at_once(family: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(process_table, "entry", lambda pid: looked.append(pid) or entry(pid))
    found = above([*family, 1 << 22])
    assert found == {
        **{pid: tuple(each.pid for each in psutil.Process(pid).parents()) for pid in family},
        1 << 22: (),
    }
    assert len(looked) == len(set(looked)), "each once, however many are below it"


def test_a_parent_that_began_later_is_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    me, parent = entry(os.getpid()), entry(os.getppid())
    assert me is not None
    assert parent is not None
    later = {me.pid: me, parent.pid: parent._replace(ticks=me.ticks + 1)}
    monkeypatch.setattr(process_table, "entry", later.get)
    assert above([me.pid]) == {me.pid: ()}
