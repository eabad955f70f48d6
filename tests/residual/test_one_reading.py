"""What many engines of a host ask at once is read once, and nothing that was read answers who asks later."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from stand_in_nvml import StandInNvml, gpu, use

from lifecycle import Process, Unmeasurable
from lifecycle.core.readings import Reading
from lifecycle.core.verdicts import Verdict
from lifecycle.nodes import driver, host_memory, process_env, process_memory, process_table, this_host, trees
from lifecycle.nodes.driver import NvmlDriver
from lifecycle.nodes.processes import by_pid
from lifecycle.nodes.this_host import ThisHost

MANY = 64
HOST = "host:x"


@pytest.fixture
def engines() -> Iterator[list[Process]]:
    """Four small processes."""
    with ExitStack() as stack:
        command = [sys.executable, "-S", "-c", "input()"]
        begun = [stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE)) for _ in range(4)]
        yield [by_pid(each.pid) for each in begun]
        for each in begun:
            assert each.stdin is not None
            each.stdin.close()


class Counted:
    """A function that counts its calls, and of which the first waits, from `hold()` on, until it is let go."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self.real, self.calls = real, list[tuple[Any, ...]]()
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()

    def hold(self) -> None:
        self.go.clear()

    def __call__(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        self.begun.set()
        assert self.go.wait(10)
        return self.real(*arguments)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str], Counted]:
    """Counts the calls of a function of a module from here on."""

    def count(owner: Any, name: str) -> Counted:
        function = Counted(getattr(owner, name))
        monkeypatch.setattr(owner, name, function)
        return function

    return count


async def weigh(process: Process) -> Reading | Unmeasurable:
    return await ThisHost().read([process], kind="cpu", scope="process", deadline_s=30)


async def asked_meanwhile(held: Counted, question: Callable[[], Any]) -> int:
    """How often that function was called for a question, and one that is asked while it answers the first."""
    held.hold()
    first = asyncio.create_task(question())
    assert await asyncio.to_thread(held.begun.wait, 10)
    second = asyncio.create_task(question())
    for _ in range(3):
        await asyncio.sleep(0)  # it has asked by now
    held.go.set()
    await asyncio.gather(first, second)
    return len(held.calls)


async def test_64_readings_at_once_take_one_table_and_one_rollup_a_process(
    engines: list[Process], counted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_table, "CHILDREN", False)
    table, rollup = counted(process_table, "table"), counted(process_memory, "pss_bytes")
    found = await asyncio.gather(*(weigh(engines[each % 4]) for each in range(MANY)))
    assert all(isinstance(each, Reading) and each.resident_bytes > 0 for each in found)
    assert {holder.pid for each in found for holder in each.holders} == {each.pid for each in engines}
    assert len(table.calls) == 1
    assert sorted(rollup.calls) == sorted((each.pid,) for each in engines)


async def test_no_listing_answers_who_asks_after_it_began(engines: list[Process], counted: Any) -> None:
    assert await asked_meanwhile(counted(trees, "trees"), lambda: weigh(engines[0])) == 2


async def test_no_rollup_answers_who_asks_after_it_began(engines: list[Process], counted: Any) -> None:
    assert await asked_meanwhile(counted(process_memory, "pss_bytes"), lambda: weigh(engines[0])) == 2


async def test_a_process_whose_memory_cannot_be_read_now_delays_no_other(
    engines: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it waits for a lock on its memory map: its own reading alone takes too long."""
    go, real = threading.Event(), process_memory.pss_bytes
    monkeypatch.setattr(
        process_memory, "pss_bytes", lambda pid: real(pid) if pid != engines[0].pid or go.wait(10) else 0
    )
    stuck = asyncio.create_task(ThisHost().read([engines[0]], kind="cpu", scope="process", deadline_s=0.5))
    others = await asyncio.gather(*(weigh(each) for each in engines[1:]))
    assert all(isinstance(each, Reading) for each in others)
    assert not stuck.done()
    found = await stuck
    go.set()
    assert isinstance(found, Unmeasurable)
    assert found.reason == "reading process memory from /proc took more than 0.5 s"


class Drives:
    """A driver that lists these processes on one GPU, and whose snapshots are counted."""

    def __init__(self, processes: list[Process]) -> None:
        used = [use(each.pid, 1 << 30) for each in processes]
        self.nvml = NvmlDriver(StandInNvml.of(gpu(compute=used)))
        self.snapshots = Counted(self.nvml.snapshot)
        self.nvml.snapshot = self.snapshots  # type: ignore[method-assign]
        self.host = ThisHost(self.nvml)

    async def read(self, process: Process) -> Reading | Unmeasurable:
        return await self.host.read([process], kind="cuda", scope="process", deadline_s=30)

    async def free(self, process: Process) -> Any:
        return await self.host.free_memory([gpu()["uuid"]], [process], need_bytes=1, deadline_s=30)

    async def mode(self, process: Process) -> Verdict:
        return await self.host.hook_mode([process], deadline_s=30)


@pytest.mark.parametrize("question", ["read", "free", "mode"])
async def test_the_driver_is_asked_once_for_all_who_ask_at_once(engines: list[Process], question: str) -> None:
    drives = Drives(engines)
    ask = getattr(drives, question)
    found = await asyncio.gather(*(ask(engines[each % 4]) for each in range(MANY)))
    assert not any(isinstance(each, Unmeasurable) for each in found)
    assert len(drives.snapshots.calls) == 1


@pytest.mark.parametrize("question", ["read", "free", "mode"])
async def test_no_snapshot_answers_who_asks_after_it_began(engines: list[Process], question: str) -> None:
    drives = Drives(engines)
    assert await asked_meanwhile(drives.snapshots, lambda: getattr(drives, question)(engines[0])) == 2


async def test_a_driver_that_fails_fails_for_all_who_asked(engines: list[Process]) -> None:
    drives = Drives(engines)
    drives.nvml._nvml.broken = 999
    found = await asyncio.gather(*(ask(engines[0]) for ask in (drives.read, drives.free, drives.mode)))
    assert all(isinstance(each, Unmeasurable) and "NVML error 999" in each.reason for each in found[:2])


async def test_a_driver_that_fails_says_of_the_hook_mode_what_it_says_to_one_who_asks_alone(
    engines: list[Process],
) -> None:
    drives = Drives(engines)
    drives.nvml._nvml.broken = 999
    assert await drives.mode(engines[0]) == process_env.hook_mode_verdict([engines[0]], nvml=drives.nvml)


@pytest.mark.parametrize("listed", [0, 1], ids=["ended", "born"])
async def test_what_lived_for_a_part_of_the_snapshot_counts(
    engines: list[Process], monkeypatch: pytest.MonkeyPatch, listed: int
) -> None:
    """Of the two listings around a snapshot, only one has the process below the root that the driver lists."""
    root, below = engines[:2]
    listings = [{root.pid: root}, {root.pid: root}]
    listings[listed][below.pid] = below
    monkeypatch.setattr(driver, "trees", lambda questions: dict.fromkeys(questions, listings.pop(0)))
    found = await Drives([below]).read(root)
    assert isinstance(found, Reading), found
    assert [holder.pid for holder in found.holders] == [below.pid]


async def room(process: Process, need_bytes: int = 1) -> Any:
    return await ThisHost().free_memory([HOST], [process], need_bytes=need_bytes, deadline_s=30)


async def test_room_that_suffices_takes_one_look_and_no_listing(engines: list[Process], counted: Any) -> None:
    free, listed, table = counted(this_host, "available_bytes"), counted(trees, "trees"), counted(trees, "table")
    found = await asyncio.gather(*(room(engines[each % 4]) for each in range(MANY)))
    assert all(each[HOST].free_bytes > 0 and each[HOST].total_bytes > 0 for each in found)
    assert (len(free.calls), listed.calls, table.calls) == (1, [], [])


async def test_who_holds_the_rest_is_read_once(engines: list[Process], counted: Any) -> None:
    listed, table, own = counted(trees, "trees"), counted(trees, "table"), counted(host_memory, "table")
    found = await asyncio.gather(*(room(engines[each % 4], 1 << 62) for each in range(MANY)))
    assert all(each[HOST].holders for each in found)
    assert not {holder.pid for each in found for holder in each[HOST].holders} & {each.pid for each in engines}
    assert (len(listed.calls), len(table.calls), len(own.calls)) == (1, 1, 0)


@pytest.mark.parametrize(("owner", "name"), [(this_host, "available_bytes"), (trees, "table"), (trees, "trees")])
async def test_no_look_at_the_host_answers_who_asks_after_it_began(
    engines: list[Process], counted: Any, owner: Any, name: str
) -> None:
    assert await asked_meanwhile(counted(owner, name), lambda: room(engines[0], 1 << 62)) == 2


@pytest.mark.parametrize(("value", "kept"), [("1", True), ("0", False)])
def test_a_backup_that_is_kept_is_seen_off_the_loop(monkeypatch: pytest.MonkeyPatch, value: str, kept: bool) -> None:
    threads: list[int] = []
    real = process_env.environ_of
    monkeypatch.setattr(process_env, "environ_of", lambda pid: threads.append(threading.get_ident()) or real(pid))
    code = "print(flush=True); input()"  # its environment may be empty until it runs
    command, environ = [sys.executable, "-S", "-c", code], {**os.environ, process_env.RETAIN: value}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as child:
        assert child.stdout is not None
        assert child.stdout.readline()
        process = by_pid(child.pid)
        assert asyncio.run(ThisHost().retains_backup([process], deadline_s=30)) is kept
        away = [replace(process, agent="node-2:30999")]
        assert not asyncio.run(ThisHost().retains_backup(away, deadline_s=30)), "its environment is not here"
        child.communicate(b"\n")
    assert threads
    assert threading.get_ident() not in threads


async def test_a_backup_that_cannot_be_seen_in_time_is_not_known(engines: list[Process], counted: Any) -> None:
    held = counted(trees, "trees")
    held.hold()
    assert await ThisHost().retains_backup([engines[0]], deadline_s=0.05) is False
    held.go.set()
