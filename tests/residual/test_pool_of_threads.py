"""Blocking calls of many engines share a few threads; one that blocks delays no other, and no call is lost."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from adapters import server_processes
from adapters.sglang import adapter as sglang
from lifecycle.core.readings import Process
from lifecycle.core.record import Record
from lifecycle.engine import processes as of_engine
from lifecycle.nodes import in_thread
from lifecycle.nodes.in_thread import in_pool
from lifecycle.nodes.in_thread import in_thread as in_a_thread
from lifecycle.nodes.processes import by_pid


@pytest.fixture(autouse=True)
def no_thread_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread of an earlier test waits for calls."""
    monkeypatch.setattr(in_thread, "_THREADS", in_thread._Threads())


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No further thread begins: nobody has waited for long enough."""
    monkeypatch.setattr(in_thread, "PATIENCE_S", 60.0)


class Blocking:
    """A call that has begun, and ends when it is let go."""

    def __init__(self) -> None:
        self.calls, self.begun, self.go = 0, threading.Event(), threading.Event()

    def __call__(self) -> int:
        self.calls += 1
        self.begun.set()
        assert self.go.wait(10)
        return threading.get_ident()

    async def asked(self, **options: Any) -> asyncio.Task[int]:
        task = asyncio.create_task(in_pool(self, deadline_s=10, **options))
        assert await asyncio.to_thread(self.begun.wait, 10)
        return task


async def test_64_short_calls_take_one_thread(one_thread: None) -> None:
    found = await asyncio.gather(*(in_pool(threading.get_ident, deadline_s=10) for _ in range(64)))
    assert len(set(found)) == 1
    assert found[0] != threading.get_ident()


async def test_a_call_that_blocks_delays_no_other() -> None:
    blocking = Blocking()
    first = await blocking.asked()
    assert await asyncio.gather(*(in_pool(lambda: 7, deadline_s=10) for _ in range(8))) == [7] * 8
    assert not first.done()
    blocking.go.set()
    assert await first


async def test_who_asks_for_what_has_not_begun_shares_it(one_thread: None) -> None:
    blocking, calls = Blocking(), list[int]()
    first = await blocking.asked()
    same = [asyncio.create_task(in_pool(lambda: calls.append(1), deadline_s=10, key="k")) for _ in range(3)]
    other = asyncio.create_task(in_pool(lambda: calls.append(2), deadline_s=10, key="other"))
    await asyncio.sleep(0)
    blocking.go.set()
    await asyncio.gather(first, *same, other)
    assert calls == [1, 2]


async def test_what_has_begun_answers_no_new_question() -> None:
    early, late = Blocking(), Blocking()
    late.go.set()
    first = await early.asked(key="k")
    second = await late.asked(key="k")
    await second
    early.go.set()
    await first
    assert (early.calls, late.calls) == (1, 1)


async def test_a_call_that_all_have_given_up_is_not_made(one_thread: None) -> None:
    blocking, calls = Blocking(), list[str]()
    first = await blocking.asked()
    with pytest.raises(TimeoutError):
        await in_pool(lambda: calls.append("given up"), deadline_s=0.01)
    patient = asyncio.create_task(in_pool(lambda: calls.append("kept"), deadline_s=10, key="k"))
    await asyncio.sleep(0)  # it has asked by now
    with pytest.raises(TimeoutError):
        await in_pool(lambda: calls.append("joined"), deadline_s=0.01, key="k")
    blocking.go.set()
    await asyncio.gather(first, patient)
    assert calls == ["kept"]


async def test_what_a_call_raises_reaches_all_who_share_it(one_thread: None) -> None:
    def fails() -> None:
        raise PermissionError("no /proc")

    asked = (in_pool(fails, deadline_s=10, key="k") for _ in range(2))
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(each) for each in found] == [PermissionError, PermissionError]


async def test_where_no_thread_can_begin_it_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real, failed = threading.Thread.start, list[threading.Thread]()

    def start(thread: threading.Thread) -> None:
        if thread.name == "lifecycle-probe" and len(failed) < 2:
            failed.append(thread)
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    assert await in_pool(lambda: 7, deadline_s=10) == 7
    assert len(failed) == 2
    pool, deadline = in_thread._POOLS[asyncio.get_running_loop()], time.monotonic() + 10
    while pool.threads:
        assert time.monotonic() < deadline, "a thread that never began counts as one"
        await asyncio.sleep(0.001)


async def until(reached: Callable[[], bool]) -> None:
    """This is so, within ten seconds."""
    deadline = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def kept() -> bool:
    """Whether a thread waits for its next call."""
    return in_thread._THREADS._kept is not None


async def test_a_thread_that_has_nothing_to_run_makes_the_next_call() -> None:
    first = await in_a_thread(threading.current_thread, deadline_s=10)
    await until(kept)
    assert await in_a_thread(threading.current_thread, deadline_s=10) is first
    await until(kept)
    assert await in_pool(threading.current_thread, deadline_s=10) is first


async def test_a_thread_that_is_not_needed_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_thread, "IDLE_S", 0.01)
    thread = await in_a_thread(threading.current_thread, deadline_s=10)
    await until(lambda: not thread.is_alive())
    assert not kept()
    assert await in_a_thread(threading.current_thread, deadline_s=10) is not thread


async def test_of_several_threads_one_is_kept() -> None:
    all_there = threading.Barrier(3)

    def one() -> threading.Thread:
        all_there.wait(10)
        return threading.current_thread()

    threads = await asyncio.gather(*(in_a_thread(one, deadline_s=10) for _ in range(3)))
    await until(lambda: sum(each.is_alive() for each in threads) == 1)
    assert kept()


async def test_a_thread_that_is_busy_takes_no_call() -> None:
    blocking = Blocking()
    await in_a_thread(threading.current_thread, deadline_s=10)
    await until(kept)
    first = asyncio.create_task(in_a_thread(blocking, deadline_s=10))
    assert await asyncio.to_thread(blocking.begun.wait, 10)
    assert await in_a_thread(lambda: 7, deadline_s=10) == 7
    assert not first.done()
    blocking.go.set()
    await first


async def test_a_thread_that_waits_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_thread, "IDLE_S", 60.0)

    class Held:
        def __call__(self) -> None:
            return None

    held = Held()
    gone = weakref.ref(held)
    await in_a_thread(held, deadline_s=10)
    del held
    await until(lambda: kept() and gone() is None)


async def test_a_call_that_comes_as_a_thread_ends_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its wait is over, and before it can say so it is given a call."""
    given = threading.Event()

    class Inbox:
        def __init__(self) -> None:
            self.calls, self.waits = SimpleQueue[Any](), 0

        def put(self, call: Any) -> None:
            self.calls.put(call)
            if self.waits:
                given.set()

        def get(self, timeout: float) -> Any:
            self.waits += 1
            if self.waits == 2:  # the first was for its first call
                assert given.wait(10)
                raise Empty
            return self.calls.get(timeout=timeout)

    monkeypatch.setattr(in_thread, "SimpleQueue", Inbox)
    assert await in_a_thread(lambda: 7, deadline_s=10) == 7
    await until(lambda: in_thread._THREADS._kept is not None and in_thread._THREADS._kept.waits == 2)
    assert await in_a_thread(lambda: 8, deadline_s=10) == 8


def test_a_child_of_a_fork_has_threads_of_its_own() -> None:
    """The thread that its parent kept is not there."""

    async def asked() -> int:
        return await in_a_thread(lambda: 7, deadline_s=5)

    async def kept_then_forked() -> int:
        await asked()
        await until(kept)
        return os.fork()

    pid = asyncio.run(kept_then_forked())
    if not pid:
        try:
            os._exit(asyncio.run(asked()))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


ME = Process("h", 1, 1.0)


async def late(roots: Any, *, deadline_s: float) -> tuple[Process, ...]:
    raise TimeoutError


async def test_a_tree_that_is_not_listed_in_time_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nobody says of it that it has ended: neither silence, nor the next driver."""
    monkeypatch.setattr(server_processes, "with_all_below", late)
    adapter = sglang.SGLangAdapter(sglang.Address("loopback", "127.0.0.1", 1))
    found = adapter._processes
    await found._has((ME,))
    assert (found.roots, found._family) == ((ME,), ())
    assert (await adapter.observe(frozenset(), deadline_s=5)).alive is None
    await adapter.aclose()


async def test_a_record_has_no_processes_that_were_not_listed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Of:
        async def processes(self) -> tuple[Process, ...]:
            return (by_pid(os.getpid()),)

    class Session:
        adapter = Of()

    record: Any = await of_engine.with_processes(Session(), Record())  # type: ignore[arg-type]
    assert by_pid(os.getpid()) in record.calibration.processes
    monkeypatch.setattr(of_engine, "with_all_below", late)
    record = await of_engine.with_processes(Session(), Record())  # type: ignore[arg-type]
    assert record.calibration.processes == ()
