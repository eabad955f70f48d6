"""Engines in the ledger of tenants: what they may hold falls on evidence alone, and rises where there is room."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from rig import V1, serve_again

from lifecycle import (
    ConfigurationError,
    Engine,
    Grade,
    GuardRefused,
    NotProved,
    Policy,
    Proved,
    State,
    Unmeasurable,
    Unreachable,
)
from lifecycle.core.tenants import LedgerUnusable, Shortage, Tenant
from lifecycle.engine.gather import READERS
from lifecycle.nodes.processes import by_pid
from lifecycle.rules.evidence import EvidenceKind
from lifecycle.store import Tenants
from lifecycle.store.leases import Leases
from lifecycle.testing import DIE, KV_CACHE, LOST, LOST_AFTER, WEIGHTS, ScriptedAdapter, capabilities

GIB = 1 << 30
CARD = "GPU-1"
QUICK = Policy(poll_s=0.01, room_wait_s=0.05, settle_s=0.2)
TRAINER = Tenant("t", "trainer", "trainer t", "t", (by_pid(os.getpid()),))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tenants.sqlite3"


def trains(ledger: Tenants, gib: float) -> None:
    """A trainer takes so much of the device."""
    assert ledger.reserve(TRAINER, {CARD: round(gib * GIB)}, totals={}, wait_s=1.0) is None


def held(ledger: Tenants) -> dict[str, float | None]:
    """GiB that each tenant may hold."""
    found = ledger.tenancies()
    return {each.tenant.name: None if each.size_bytes is None else each.size_bytes / GIB for each in found}


def engine(ledger: Tenants, name: str = "e", *, policy: Policy = QUICK, lease: Any = None, **how: Any) -> Engine:
    """An engine with 4 GiB of weights and 8 GiB of KV cache on one device, in the ledger."""
    adapter = ScriptedAdapter(name, capabilities(WEIGHTS, KV_CACHE), devices=(CARD,), **how)
    return Engine(adapter, name=name, policy=policy, probe=adapter.probe, lease=lease, tenants=ledger)


async def released(ledger: Tenants, name: str = "e") -> Engine:
    """The same, released."""
    one = await engine(ledger, name).connect()
    await one.pause()
    await one.drain()
    await one.release(weights=V1)
    return one


def in_ledger(one: Engine) -> str:
    """Its name in the ledger: other processes may call theirs alike, which only they reach."""
    return f"{one.adapter.url} of pid {os.getpid()}"


def base(one: Engine) -> float:
    """GiB that it holds beside its tags."""
    return one.adapter.engine.bytes_by_device()[CARD] / GIB


async def test_an_engine_is_in_the_ledger_with_what_it_holds_from_connect_on(path: Path) -> None:
    ledger = Tenants(path, budgets={CARD: GIB})  # what is there is there, whatever was agreed
    one = await engine(ledger).connect()
    assert held(ledger) == {in_ledger(one): base(one)}
    assert base(one) > 12


async def test_a_release_that_was_proved_lowers_it_and_a_restore_takes_it_again(path: Path) -> None:
    ledger = Tenants(path, budgets={CARD: 16 * GIB})
    one = await released(ledger)
    left = base(one)
    assert held(ledger) == {in_ledger(one): left}
    assert left < 4
    assert [each.given_back for each in ledger.tenancies()] == [True]
    await one.restore_weights()
    assert held(ledger) == {in_ledger(one): left + 4}
    await serve_again(one)
    assert held(ledger) == {in_ledger(one): left + 12}


async def test_a_release_that_was_not_proved_lowers_nothing(path: Path) -> None:
    ledger = Tenants(path, budgets={CARD: 16 * GIB})
    one = await engine(ledger).connect()
    before = held(ledger)
    await one.pause()
    await one.drain()
    one.adapter.engine.frees = False
    with pytest.raises(NotProved):
        await one.release(weights=V1, deadline_s=0.3)
    assert held(ledger) == before


@pytest.mark.parametrize("verb", ["restore_weights", "restore_kv"])
async def test_a_restore_over_the_budget_is_refused_and_names_who_holds_it(path: Path, verb: str) -> None:
    ledger = Tenants(path, budgets={CARD: 16 * GIB})
    one = await released(ledger)
    if verb == "restore_kv":
        await one.restore_weights()
        await one.update_weights(V1)
    before = {**held(ledger), "t": 12}
    trains(ledger, 12 if verb == "restore_weights" else 8)
    one.adapter.journal.clear()
    with pytest.raises(GuardRefused, match=r"cotenants_within_budget: .*trainer t may hold"):
        await getattr(one, verb)()
    assert one.adapter.journal.calls() == []
    ledger.leaves("t")
    assert held(ledger) == {name: size for name, size in before.items() if name != "t"}
    await serve_again(one)


async def test_a_restore_waits_for_a_tenant_that_leaves_late(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Tenants(path, budgets={CARD: 16 * GIB})
    one = await released(ledger)
    trains(ledger, 12)
    one._session.policy = Policy(poll_s=0.01, room_wait_s=30.0)
    reserve, waits = ledger.reserve, asyncio.Event()

    def told(*asked: Any, **how: Any) -> Shortage | None:
        short = reserve(*asked, **how)
        waits.set()
        return short

    monkeypatch.setattr(ledger, "reserve", told)
    restoring = asyncio.ensure_future(one.restore_weights(deadline_s=60.0))
    await waits.wait()
    assert one.state is State.RELEASED
    ledger.leaves("t")
    await restoring
    assert one.state is State.WEIGHTS_RESTORED


async def test_what_was_reserved_for_a_command_that_was_refused_is_free(path: Path) -> None:
    ledger = Tenants(path, budgets={CARD: 16 * GIB})
    one = await released(ledger)
    before = held(ledger)
    one.adapter.probe.script(Unmeasurable(reason="not now"), *[Unmeasurable(reason="not now")] * 200)
    with pytest.raises(GuardRefused):
        await one.restore_weights(deadline_s=0.2)
    assert held(ledger) == before


async def test_a_restore_that_was_given_up_before_it_began_leaves_the_ledger_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Tenants(path, budgets={CARD: 16 * GIB})
    one = await released(ledger)
    before, reserved = held(ledger), asyncio.Event()
    headroom = one._session.tenancy.headroom

    async def hangs(*asked: Any) -> Any:
        assert isinstance(await headroom(*asked), Proved)
        reserved.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(one._session.tenancy, "headroom", hangs)
    restoring = asyncio.ensure_future(one.restore_weights())
    await reserved.wait()
    assert held(ledger) != before
    restoring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await restoring
    assert one.state is State.RELEASED
    assert held(ledger) == before


@pytest.mark.parametrize("act", [LOST, LOST_AFTER])
async def test_a_restore_whose_reply_was_lost_keeps_what_it_may_hold(path: Path, act: Any) -> None:
    ledger = Tenants(path, budgets={CARD: 16 * GIB})
    one = await released(ledger)
    left = base(one)
    one.adapter.script("restore", act)
    with pytest.raises(Exception, match="restore_weights failed"):
        await one.restore_weights(deadline_s=0.5)
    least = left + (4 if act is LOST_AFTER else 0)
    assert least <= (held(ledger)[in_ledger(one)] or 0) <= left + 4


async def test_an_engine_that_is_found_gone_when_its_memory_is_wanted_back_holds_nothing(path: Path) -> None:
    ledger = Tenants(path, budgets={CARD: 16 * GIB})
    one = await released(ledger)
    one.adapter.script("observe", DIE)
    with pytest.raises(Unreachable):
        await one.restore_weights(deadline_s=1.0)
    await one.recover()
    assert one.state is State.GONE
    assert held(ledger) == {}


async def test_a_restore_that_finds_the_engine_open_leaves_it_with_all_that_it_may_hold(path: Path) -> None:
    ledger = Tenants(path, budgets={CARD: 40 * GIB})
    one = await released(ledger)
    for call, args in (("restore", {"tags": ["kv_cache", "weights"]}), ("resume", {})):
        one.adapter.engine.apply(call, args)
    with pytest.raises(Unreachable):
        await one.restore_weights(deadline_s=1.0)
    assert (held(ledger)[in_ledger(one)] or 0) >= 12


@pytest.mark.parametrize("restores", [False, True])
async def test_a_command_that_finds_another_process_leaves_it_with_an_unknown_part(path: Path, restores: bool) -> None:
    ledger = Tenants(path, budgets={CARD: 40 * GIB})
    one = await released(ledger)
    if restores:
        await one.restore_weights()
    else:
        await serve_again(one)
    one.adapter.engine.sizes["kv_cache"] = 20 * GIB
    one.adapter.engine.restart()
    with pytest.raises(Unreachable):
        await (one.restore_kv() if restores else one.pause())
    assert held(ledger) == {in_ledger(one): None}
    await one.recover()
    assert held(ledger) == {in_ledger(one): base(one)}


async def test_a_tag_that_somebody_else_mapped_counts_also_where_another_had_come_back(path: Path) -> None:
    ledger = Tenants(path, budgets={CARD: 40 * GIB})
    one = await released(ledger)
    await one.restore_weights()
    one.adapter.reports_tags = True
    one.adapter.engine.apply("restore", {"tags": ["kv_cache"]})
    await one.verify()
    assert (held(ledger)[in_ledger(one)] or 0) >= 12


async def test_who_has_no_lease_writes_nothing_over_what_the_driver_reserved(path: Path, tmp_path: Path) -> None:
    ledger, leases = Tenants(path, budgets={CARD: 40 * GIB}), Leases(tmp_path / "leases.sqlite3")
    one = engine(ledger, lease=leases)
    await one.connect()
    for step in (one.pause, one.drain):
        await step()
    await one.release(weights=V1)
    await one.aclose()
    other = Engine(one.adapter, name="e", policy=QUICK, probe=one.adapter.probe, lease=leases, tenants=ledger)
    await other.connect()
    await other.restore_weights()
    reserved = held(ledger)
    assert reserved == {in_ledger(one): base(one)}
    one.adapter.engine.leaked_bytes += 1 << 20
    await one.verify()
    assert held(ledger) == reserved


async def test_who_connected_while_another_had_the_engine_measures_it_before_its_first_command(
    path: Path, tmp_path: Path
) -> None:
    ledger, leases = Tenants(path, budgets={CARD: 40 * GIB}), Leases(tmp_path / "leases.sqlite3")
    one = engine(ledger, lease=leases)
    await one.connect()
    await one.pause()
    other = Engine(one.adapter, name="e", policy=QUICK, probe=one.adapter.probe, lease=leases, tenants=ledger)
    await other.connect()
    await one.aclose()
    if other.state is State.PAUSED:
        await other.drain()
    await other.release(weights=V1)
    assert other.memory_is_free
    assert held(ledger) == {in_ledger(one): base(one)}
    await serve_again(other)


async def test_an_engine_that_waited_and_gave_up_is_not_in_line_any_more(path: Path) -> None:
    ledger = Tenants(path, budgets={CARD: 16 * GIB})
    one = await released(ledger)
    trains(ledger, 12)
    with pytest.raises(GuardRefused):
        await one.restore_weights()
    one._session.policy = Policy(poll_s=0.01, room_wait_s=30.0)
    restoring = asyncio.ensure_future(one.restore_weights(deadline_s=60.0))
    while not ledger._file._db.execute("SELECT * FROM waiting").fetchall():  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    restoring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await restoring
    assert ledger._file._db.execute("SELECT * FROM waiting").fetchall() == []


async def test_what_is_resident_after_a_restore_counts_where_it_is_more_than_was_reserved(path: Path) -> None:
    ledger = Tenants(path, budgets={CARD: 40 * GIB})
    one = await released(ledger)
    one.adapter.engine.sizes["weights"] = 7 * GIB
    await one.restore_weights()
    assert held(ledger) == {in_ledger(one): base(one)}


def test_room_is_reserved_before_it_is_measured() -> None:
    """Otherwise two engines would each find the same memory free, and both take it."""
    order = list(READERS)
    assert order.index(EvidenceKind.COTENANTS) < order.index(EvidenceKind.DEVICE_ROOM)


async def test_who_only_looks_at_an_engine_that_another_drives_writes_nothing(path: Path, tmp_path: Path) -> None:
    ledger, leases = Tenants(path, budgets={CARD: 16 * GIB}), Leases(tmp_path / "leases.sqlite3")
    one = engine(ledger, lease=leases)
    await one.connect()
    await one.pause()
    tenant = ledger.tenancies()[0].tenant
    ledger.holds(tenant, {CARD: 14 * GIB}, given_back=False)
    other = Engine(one.adapter, name="e", policy=QUICK, probe=one.adapter.probe, lease=leases, tenants=ledger)
    await other.connect()
    assert held(ledger) == {in_ledger(one): 14}


async def test_an_engine_that_is_gone_holds_nothing(path: Path) -> None:
    ledger = Tenants(path, budgets={CARD: 16 * GIB})
    one = await engine(ledger).connect()
    one.adapter.script("pause", DIE)
    with pytest.raises(Exception, match="pause"):
        await one.pause(deadline_s=0.5)
    await one.recover()
    assert one.state is State.GONE
    assert held(ledger) == {}


async def test_an_engine_that_was_started_again_is_in_the_ledger_as_the_process_that_it_is(path: Path) -> None:
    ledger = Tenants(path, budgets={CARD: 40 * GIB})
    one = await released(ledger)
    before = ledger.tenancies()[0].tenant.processes
    one.adapter.engine.restart()
    assert await one.verify() is not State.RELEASED
    assert held(ledger) == {in_ledger(one): None}, "nobody has measured it"
    await one.recover()
    (tenancy,) = ledger.tenancies()
    assert tenancy.tenant.processes != before
    assert held(ledger) == {in_ledger(one): base(one)}
    assert base(one) > 12


async def test_one_that_was_gone_and_was_started_again_is_in_the_ledger_too(path: Path) -> None:
    ledger = Tenants(path, budgets={CARD: 40 * GIB})
    one = await engine(ledger).connect()
    one.adapter.script("pause", DIE)
    with pytest.raises(Exception, match="pause"):
        await one.pause(deadline_s=0.5)
    await one.recover()
    assert held(ledger) == {}
    one.adapter.engine.restart()
    await one.recover()
    assert held(ledger) == {in_ledger(one): base(one)}


async def test_memory_that_somebody_else_took_back_is_the_engines_again(path: Path) -> None:
    ledger = Tenants(path, budgets={CARD: 16 * GIB})
    one = await released(ledger)
    one.adapter.reports_tags = True
    one.adapter.engine.apply("restore", {"tags": ["kv_cache", "weights"]})
    await one.verify()
    assert one.state is not State.RELEASED
    assert (held(ledger)[in_ledger(one)] or 0) >= 12


async def test_an_engine_that_cannot_be_measured_is_refused_where_a_ledger_is_given(path: Path) -> None:
    blind = engine(Tenants(path), policy=Policy(accept={"memory_returned": Grade.ACKNOWLEDGED}))
    blind.adapter.probe.always = Unmeasurable(reason="no driver")
    with pytest.raises(ConfigurationError, match=r"cannot be in the ledger.*no driver.*leave tenants= out"):
        await blind.connect()


async def test_a_ledger_that_cannot_be_asked_refuses_the_restore(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Tenants(path, budgets={CARD: 16 * GIB})
    one = await released(ledger)

    def unusable(*asked: Any, **how: Any) -> None:
        raise LedgerUnusable("the ledger is locked")

    monkeypatch.setattr(ledger, "reserve", unusable)
    with pytest.raises(GuardRefused, match=r"cotenants_within_budget.*the ledger is locked"):
        await one.restore_weights()
