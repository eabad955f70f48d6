"""Blocking calls of many engines share a few threads; one that blocks delays no other, and no call is lost."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

import pytest

from adapters.sglang import adapter as sglang
from lifecycle.core.readings import Process
from lifecycle.core.record import Record
from lifecycle.engine import processes as of_engine
from lifecycle.nodes import in_thread
from lifecycle.nodes.in_thread import in_pool
from lifecycle.nodes.processes import by_pid


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


ME = Process("h", 1, 1.0)


async def late(roots: Any, *, deadline_s: float) -> tuple[Process, ...]:
    raise TimeoutError


async def test_a_tree_that_is_not_listed_in_time_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nobody says of it that it has ended: neither silence, nor the next driver."""
    monkeypatch.setattr(sglang, "with_all_below", late)
    adapter = sglang.SGLangAdapter(sglang.Address("loopback", "127.0.0.1", 1))
    await adapter._has((ME,))
    assert (adapter._processes, adapter._family) == ((ME,), ())
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
