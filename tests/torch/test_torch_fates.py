"""What the gate of an engine in this process tells of its requests, and what the requests themselves saw."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from contextlib import suppress

import pytest
from lifecycle.adapters.torch_memory_saver import GateClosed, TorchEngine
from lifecycle.adapters.torch_memory_saver.gate import Gate
from torch_rig import built

from lifecycle.core.facts import PauseMode
from lifecycle.core.requests import NOT_KNOWN, RequestCounts, RequestFates


def counts(gate: Gate) -> RequestCounts:
    return gate.counts("b")


def test_each_end_is_counted_as_what_it_was() -> None:
    gate = Gate()
    with gate.request():
        assert not gate.aborting
        assert counts(gate).open == 1
    with suppress(ZeroDivisionError), gate.request():
        raise ZeroDivisionError
    with gate.request(), gate.request():  # one within another
        gate.close("abort")
        assert gate.aborting
    with pytest.raises(GateClosed), gate.request():
        pass
    assert counts(gate) == RequestCounts(
        "engine", "b", ended=4, finished=1, doubtful=(1,), aborted=1, refused=1, open=0
    )
    gate.open()
    with gate.request():
        assert not gate.aborting
    assert counts(gate).finished == 2


def test_a_request_that_began_another_is_itself_again_once_that_has_ended() -> None:
    gate = Gate()
    with gate.request():
        with gate.request():
            pass
        gate.close("abort")
        assert gate.aborting
    assert counts(gate) == RequestCounts(
        "engine", "b", ended=2, finished=1, doubtful=(0,), aborted=1, refused=0, open=0
    )


def test_who_asks_from_elsewhere_is_no_request() -> None:
    gate = Gate()
    gate.close("abort")
    assert gate.aborting
    gate.open()
    with gate.request():
        pass
    assert counts(gate).aborted == 0


class Requests:
    """Requests in threads of their own, which end when they are told to stop, or when they have had their steps."""

    def __init__(self, engine: TorchEngine) -> None:
        self._gate = engine.gate
        self.ends: Counter[str] = Counter()
        self.finish = threading.Event()
        self._threads: list[threading.Thread] = []

    def begin(self, count: int, *, asks: bool = True) -> None:
        before = self._gate.running()
        self._threads += [threading.Thread(target=self._run, args=(asks,), daemon=True) for _ in range(count)]
        for thread in self._threads[-count:]:
            thread.start()
        while self._gate.running() < before + count:
            self.finish.wait(0.001)

    def _run(self, asks: bool) -> None:
        with self._gate.request():
            while not self.finish.wait(0.001):
                if asks and self._gate.aborting:
                    self.ends["aborted"] += 1
                    return
        self.ends["finished"] += 1

    def refused(self) -> None:
        with pytest.raises(GateClosed), self._gate.request():
            pass

    def join(self) -> None:
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads)


@pytest.mark.parametrize(
    ("mode", "fates"),
    [("abort", RequestFates(6, 0, 6, 0, 2, "engine")), ("wait", RequestFates(6, 6, 0, 0, 2, "engine"))],
)
async def test_six_requests_and_a_pause(mode: PauseMode, fates: RequestFates) -> None:
    with built() as (engine, _):
        await engine.connect()
        requests = Requests(engine)
        requests.begin(6)
        await engine.pause(mode)
        if mode == "wait":
            requests.finish.set()
        drained = await engine.drain()
        await asyncio.to_thread(requests.join)
        for _ in range(2):
            requests.refused()
        resumed = await engine.resume()
    assert requests.ends == Counter({"aborted": 6} if mode == "abort" else {"finished": 6})
    assert drained.requests == RequestFates(6, fates.finished, fates.aborted, 0, 0, "engine")
    assert resumed.requests == fates


async def test_of_one_that_does_not_ask_it_is_not_known_whether_it_finished() -> None:
    with built() as (engine, _):
        await engine.connect()
        requests = Requests(engine)
        requests.begin(2)
        requests.begin(1, asks=False)
        await engine.pause("abort")
        requests.finish.set()
        drained = await engine.drain()
        await asyncio.to_thread(requests.join)
    assert drained.requests is not None
    assert (drained.requests.ended, drained.requests.finished) == (3, None)


class Plain:
    """What a user's own has, and no more."""

    modes = Gate.modes

    def __init__(self) -> None:
        self._closed = False

    def close(self, mode: PauseMode) -> None:
        self._closed = True

    def open(self) -> None:
        self._closed = False

    def is_closed(self) -> bool:
        return self._closed

    def running(self) -> int:
        return 0


async def test_a_gate_of_the_user_that_does_not_count_is_unknown() -> None:
    with built(in_flight=Plain()) as (engine, _):
        await engine.connect()
        assert await engine.adapter.request_counts(deadline_s=1) is None
        await engine.pause()
        assert (await engine.drain()).requests == NOT_KNOWN


async def test_counts_are_those_of_one_engine() -> None:
    """Two engines may share what admits their requests: what was counted under one says nothing of the other."""
    gate = Gate()
    boots = set()
    for name in ("a", "b"):
        with built(name, in_flight=gate) as (engine, _):
            await engine.connect()
            told = await engine.adapter.request_counts(deadline_s=1)
            assert told is not None
            assert told.boot == engine.facts.boot
            boots.add(told.boot)
    assert len(boots) == 2


async def test_steps_of_a_tenant_that_serves_nothing_are_no_requests() -> None:
    with built(serves=False) as (tenant, _):
        await tenant.connect()
        with tenant.gate.request():
            pass
        await tenant.pause()
        assert (await tenant.drain()).requests == NOT_KNOWN
