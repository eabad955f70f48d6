"""Leases for the drivers of many hosts: they end unless they are renewed, from a thread that no step keeps busy."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rig import V1, serve_again

from lifecycle import ConfigurationError, Engine, EngineHeld
from lifecycle.core.lease import Driver, LeasedEngine, LeaseHeld, LeaseUse
from lifecycle.engine import renewal
from lifecycle.engine.owner import Owner
from lifecycle.store import lease_table
from lifecycle.store.lease_table import LeaseTable
from lifecycle.store.leases import Leases, RenewingHolder
from lifecycle.testing import QUICK, ScriptedAdapter

A = Driver("a", "pid 1 on there")
B = Driver("b", "pid 2 on elsewhere")
ENGINE = LeasedEngine("here:30000", "boot-1")
DEADLINE_S = 20.0


def until(holds: Callable[[], bool]) -> None:
    """Returns once it holds; AssertionError after DEADLINE_S seconds."""
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < end, "it never held"
        time.sleep(0.005)


class Clock:
    """Both clocks of the table, which stand still."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lease_table, "time", clock)
    return clock


# the table


def test_a_second_driver_is_refused_while_the_first_renews(clock: Clock) -> None:
    table = LeaseTable(60.0)
    table.take(A, ENGINE, LeaseUse("offload"))
    for _ in range(10):
        clock.now_s += 59.0
        table.renew(A)
        with pytest.raises(LeaseHeld, match="pid 1 on there has it for offload"):
            table.take(B, ENGINE, LeaseUse("offload"))


@pytest.mark.parametrize("shared", [True, False], ids=["table", "file"])
def test_an_address_that_leads_to_another_engine_now_is_held_by_the_driver_of_that_one(
    shared: bool, tmp_path: Path
) -> None:
    holder = LeaseTable(60.0) if shared else Leases(tmp_path / "leases")
    holder.take(A, LeasedEngine("here:1", "boot-1"), LeaseUse("offload"))
    before = LeasedEngine("forwarded:1", "boot-2")
    holder.take(B, before, LeaseUse("offload"))
    holder.free(B, before)
    with pytest.raises(LeaseHeld, match="pid 1 on there has it for offload"):
        holder.take(B, LeasedEngine("forwarded:1", "boot-1"), LeaseUse("offload"))


def test_a_lease_that_was_not_renewed_ends_and_cannot_be_renewed_any_more(clock: Clock) -> None:
    table = LeaseTable(60.0)
    table.take(A, ENGINE, LeaseUse("offload"))
    clock.now_s += 60.0
    table.renew(A)
    assert not table.seen(ENGINE).held
    assert table.take(B, ENGINE, LeaseUse("offload")).token == "b"


def test_a_call_that_may_run_still_keeps_the_engine_after_its_driver(clock: Clock) -> None:
    table = LeaseTable(60.0)
    table.take(A, ENGINE, LeaseUse("release", call_until_s=1100.0, sends=True))
    clock.now_s += 60.0
    with pytest.raises(LeaseHeld, match="since what it sent may run until then"):
        table.take(B, ENGINE, LeaseUse("recover"))
    clock.now_s += 40.0
    assert table.take(B, ENGINE, LeaseUse("recover", sends=True)).uses == 2


@pytest.mark.parametrize("other", [LeasedEngine("here:30000", "boot-2"), LeasedEngine("elsewhere:1", "boot-1")])
def test_an_engine_is_known_by_its_address_and_by_its_boot(other: LeasedEngine) -> None:
    table = LeaseTable()
    table.take(A, ENGINE, LeaseUse("offload"))
    with pytest.raises(LeaseHeld):
        table.take(B, other, LeaseUse("offload"))
    assert table.take(B, LeasedEngine("elsewhere:1"), LeaseUse("offload")).held
    assert table.seen(LeasedEngine("nowhere:1")) is None


def test_uses_count_the_leases_under_which_something_was_sent() -> None:
    table = LeaseTable()
    assert table.take(A, ENGINE, LeaseUse("pause")).uses == 0
    for _ in range(2):
        lease = table.take(A, ENGINE, LeaseUse("pause", sends=True, kept_in="store-a"))
        assert (lease.uses, lease.kept_in) == (1, "store-a")
    table.free(B, ENGINE)
    assert table.seen(ENGINE).held, "it is not b's to free"
    table.free(A, ENGINE)
    assert not table.seen(ENGINE).held
    lease = table.take(B, ENGINE, LeaseUse("pause"))
    assert (lease.uses, lease.kept_in) == (1, "store-a")
    assert table.take(B, LeasedEngine("here:1", "boot-1"), LeaseUse("pause", sends=True)).uses == 2
    assert table.seen(ENGINE).uses == 2


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_times_are_seconds(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="seconds > 0"):
        LeaseTable(seconds)
    with pytest.raises(ConfigurationError, match="seconds > 0"):
        RenewingHolder(print, renew_s=seconds)


# the thread


def renewing(table: LeaseTable, adapter: ScriptedAdapter, **how: Any) -> Engine:
    """A driver that asks the table as another process would."""
    holder = RenewingHolder(lambda what, **about: getattr(table, what)(**about), renew_s=table.renew_s)
    return Engine(adapter, name="e", policy=QUICK, probe=adapter.probe, lease=holder, **how)


def is_renewed(token: str) -> bool:
    """Whether the leases of this driver are renewed."""
    return any(token in each._kept for each in renewal._renewals.values())


async def test_a_step_that_keeps_the_loop_busy_for_longer_than_the_lease_loses_nothing() -> None:
    table = LeaseTable(0.3)
    engine = renewing(table, ScriptedAdapter("e"))
    await engine.connect()
    await engine.pause()
    end = time.monotonic() + 1.0
    while time.monotonic() < end:  # the loop of this driver stands still here
        assert table.seen(LeasedEngine("scripted://e")).held
        time.sleep(0.01)  # noqa: ASYNC251
    assert is_renewed(engine._session.owner.driver.token)
    await engine.resume()
    await engine.aclose()
    assert not is_renewed(engine._session.owner.driver.token)


async def test_one_whose_lease_ended_and_was_taken_sends_nothing() -> None:
    table, adapter = LeaseTable(60.0), ScriptedAdapter("e")
    first, second = renewing(table, adapter), renewing(table, adapter)
    await first.connect()
    await first.pause()
    for row in table._rows.values():
        row.ends_s = 0.0  # as if its process had been stopped
    await second.connect()
    await second.release(weights=V1)
    adapter.journal.clear()
    with pytest.raises(EngineHeld, match="has it for"):
        await first.drain()
    assert adapter.journal.calls() == []
    await serve_again(second)
    sent = len(adapter.journal.calls())
    with pytest.raises(Exception, match="e: "):
        await first.release(weights=V1)
    assert not [call for call in adapter.journal.calls()[sent:] if "release" in call], "it learned what the other did"


async def test_a_lease_that_was_lost_between_two_calls_of_a_release_stops_it_before_the_second() -> None:
    """Also where the other driver has come and gone: its lease is free, and what is known is of before."""
    table, adapter = LeaseTable(60.0), ScriptedAdapter("e")
    engine = renewing(table, adapter)
    await engine.connect()
    await engine.pause()
    await engine.drain()
    other, send, sent = Driver("other", "pid 9 on elsewhere"), adapter.send, []

    async def loses(call: Any, *, deadline_s: float) -> Any:
        sent.append(call.name)
        reply = await send(call, deadline_s=deadline_s)
        (row,) = table._rows.values()
        row.ends_s, row.lease = 0.0, replace(row.lease, call_until_s=None)
        table.take(other, row.engine, LeaseUse("pause", sends=True))
        table.free(other, row.engine)
        return reply

    adapter.send = loses
    before = len(sent)
    with pytest.raises(Exception, match="pid 9 on elsewhere"):
        await engine.release(weights=V1)
    assert len(sent) == before + 1


async def test_a_renewal_that_fails_is_tried_again_and_said(caplog: pytest.LogCaptureFixture) -> None:
    table, fails = LeaseTable(0.6), [True]

    def ask(what: str, **about: Any) -> Any:
        if what == "renew" and fails:
            fails.pop()
            raise ConnectionError("the actor is away")
        return getattr(table, what)(**about)

    adapter = ScriptedAdapter("e")
    engine = Engine(adapter, policy=QUICK, probe=adapter.probe, lease=RenewingHolder(ask, renew_s=0.1))
    await engine.connect()
    await engine.pause()
    begun_s = table._rows["scripted://e"].ends_s
    until(lambda: table._rows["scripted://e"].ends_s > begun_s)
    assert "its leases could not be renewed" in caplog.text
    assert is_renewed(engine._session.owner.driver.token)
    await engine.resume()
    await engine.aclose()
    assert not is_renewed(engine._session.owner.driver.token)


async def test_a_holder_that_does_not_answer_keeps_no_others_lease_from_being_renewed() -> None:
    table, stuck, asked = LeaseTable(0.5), threading.Event(), threading.Event()

    def hangs(what: str, **about: Any) -> Any:
        if what == "renew":
            asked.set()
            stuck.wait(DEADLINE_S)
        return getattr(LeaseTable(60.0), what)(**about)

    other = RenewingHolder(hangs, renew_s=0.05)
    renewal.keep(other, A)
    try:
        engine = renewing(table, ScriptedAdapter("e"))
        await engine.connect()
        await engine.pause()
        until(asked.is_set)
        end = time.monotonic() + 1.2
        while time.monotonic() < end:
            assert table.seen(LeasedEngine("scripted://e")).held
            time.sleep(0.01)  # noqa: ASYNC251
    finally:
        stuck.set()
        renewal.drop(other, A)


def sends(owner: Owner, *, repeatable: bool = True) -> None:
    """A call is about to be sent."""
    owner.sends("boot", None if repeatable else time.time() + 0.01)


def owner_of(table: LeaseTable) -> Owner:
    return Owner(table, name="e", address="here:1")


def one_whose_lease_ended_and_another() -> tuple[Owner, Owner]:
    """Two drivers of one engine: the first has sent something, and its lease has ended since."""
    table = LeaseTable(60.0)
    first, second = owner_of(table), owner_of(table)
    first.take("boot", "pause", None)
    sends(first)
    table._rows["here:1"].ends_s = 0.0
    return first, second


def test_what_is_sent_under_a_lease_that_was_taken_anew_counts_anew() -> None:
    """Otherwise the driver in between goes on with what the first one changed behind it."""
    first, second = one_whose_lease_ended_and_another()
    second.take("boot", "pause", None)
    sends(second)
    second.free("boot")
    first.take("boot", "resume", None)
    sends(first)
    assert first.fence == 3
    first.free("boot")
    second.take("boot", "resume", None)
    assert second.missed is not None


def test_a_lease_that_ended_and_that_nobody_took_is_taken_again_before_a_call() -> None:
    first, second = one_whose_lease_ended_and_another()
    sends(first)
    with pytest.raises(LeaseHeld):
        second.take("boot", "pause", None)


async def test_an_engine_that_nobody_has_any_more_is_not_renewed() -> None:
    table = LeaseTable(0.2)
    engine = renewing(table, ScriptedAdapter("e"))
    await engine.connect()
    await engine.pause()
    token = engine._session.owner.driver.token
    del engine
    gc.collect()
    until(lambda: not is_renewed(token))
    until(lambda: not table.seen(LeasedEngine("scripted://e")).held)


def test_holders_whose_leases_do_not_end_start_no_thread(tmp_path: Any) -> None:
    renewal.keep(Leases(tmp_path / "leases"), A)
    assert not is_renewed(A.token)
    renewal.drop(Leases(tmp_path / "leases"), A)


def test_the_thread_ends_with_the_last_lease() -> None:
    renewals, table = renewal._Renewals(), LeaseTable(60.0)
    renewals.keep(table, A)
    assert renewals._running
    renewals.drop(A)
    until(lambda: not renewals._running)
    renewals.keep(table, B)  # and another begins
    assert renewals._running
    renewals.drop(B)
    until(lambda: not renewals._running)
