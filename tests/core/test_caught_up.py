"""What another driver did to engines is found out before a move or a command, once, and of those alone that it had."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from rig import V1, new_engine

from lifecycle import Engine, State
from lifecycle.fleet.claims import claimed, leased
from lifecycle.store import Tenants
from lifecycle.store.leases import Leases
from lifecycle.testing import QUICK, Journal, ScriptedAdapter

MEASURED = "residual"


def driver(adapter: ScriptedAdapter, leases: Path, *, tenants: Any = None) -> Engine:
    """One more driver of this engine."""
    lease = Leases(leases)
    return Engine(adapter, name=adapter.name, policy=QUICK, probe=adapter.probe, lease=lease, tenants=tenants)


async def resumed_by_another(adapter: ScriptedAdapter, leases: Path) -> None:
    """Another driver has paused and resumed it."""
    other = await driver(adapter, leases).connect()
    await other.pause()
    await other.resume()


@pytest.mark.parametrize("held", [claimed, leased])
async def test_an_engine_that_nobody_else_had_takes_no_task_of_a_move(held: Any) -> None:
    """Of 10,000 engines these tasks took 0.4 s of each move, and found out nothing."""
    journal = Journal()
    engines = [new_engine(f"e{number}", journal=journal) for number in range(3)]
    await asyncio.gather(*(engine.connect() for engine in engines))
    loop, begun = asyncio.get_running_loop(), list[Any]()

    def counted(loop: asyncio.AbstractEventLoop, work: Any, **how: Any) -> asyncio.Task[Any]:
        begun.append(work)
        return asyncio.Task(work, loop=loop, **how)

    loop.set_task_factory(counted)
    try:
        async with held(engines, "offload"):
            pass
    finally:
        loop.set_task_factory(None)
    assert begun == []


async def test_those_that_another_driver_had_are_looked_at_and_no_others(tmp_path: Path) -> None:
    leases, (one, two) = tmp_path / "leases", (ScriptedAdapter("one"), ScriptedAdapter("two"))
    engines = [await driver(each, leases).connect() for each in (one, two)]
    await resumed_by_another(one, leases)
    for adapter in (one, two):
        adapter.journal.clear()
    async with claimed(engines, "offload"):
        pass
    assert one.journal
    assert not two.journal


async def test_where_one_cannot_be_caught_up_with_the_move_ends_once_all_were(tmp_path: Path) -> None:
    leases, (one, two) = tmp_path / "leases", (ScriptedAdapter("one"), ScriptedAdapter("two"))
    engines = [await driver(each, leases).connect() for each in (one, two)]
    for adapter in (one, two):
        await resumed_by_another(adapter, leases)
    begun, ended = list[str](), list[str]()
    caught_up = Engine.caught_up

    async def counted(self: Engine, deadline_s: float | None = None) -> None:
        begun.append(self.name)
        if self.name == "one":
            raise ConnectionError("it does not answer")
        await caught_up(self, deadline_s)
        ended.append(self.name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "caught_up", counted)
        with pytest.raises(ConnectionError, match="it does not answer"):
            async with claimed(engines, "offload"):
                pytest.fail("the move began")
    assert begun == ["one", "two"]
    assert ended == ["two"], "its look at the engine was left under way"
    assert not any(engine.in_move for engine in engines)


async def test_a_look_that_failed_is_made_again_before_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases, adapter = tmp_path / "leases", ScriptedAdapter("e")
    engine = await driver(adapter, leases).connect()
    other = await driver(adapter, leases).connect()
    await other.pause()
    await other.aclose()
    observe = adapter.observe

    async def fails(*asked: Any, **how: Any) -> Any:
        raise ConnectionError("it does not answer")

    monkeypatch.setattr(adapter, "observe", fails)
    with pytest.raises(ConnectionError, match="it does not answer"):
        async with claimed([engine], "offload"):
            pytest.fail("the move began")
    assert engine.state is State.SERVING
    monkeypatch.setattr(adapter, "observe", observe)
    await engine.release(weights=V1)  # what an engine allows that was found drained, and one that serves does not
    assert engine.state is State.RELEASED


# with a ledger of tenants


def in_ledger(ledger: Tenants) -> int | None:
    (found,) = ledger.tenancies()
    return found.size_bytes


async def released_by_another(adapter: ScriptedAdapter, leases: Path) -> None:
    """A driver without a ledger has released it."""
    other = await driver(adapter, leases).connect()
    await other.pause()
    await other.drain()
    await other.release(weights=V1)
    await other.aclose()


async def test_a_move_that_sends_an_engine_nothing_tells_the_ledger_what_it_holds(tmp_path: Path) -> None:
    """The ledger has what the one said who drove it before; another has released it since, and wrote nothing."""
    leases, adapter, ledger = tmp_path / "leases", ScriptedAdapter("e"), Tenants(tmp_path / "tenants")
    first = await driver(adapter, leases, tenants=ledger).connect()
    before = in_ledger(ledger)
    await first.aclose()
    await released_by_another(adapter, leases)
    engine = await driver(adapter, leases, tenants=ledger).connect()
    assert in_ledger(ledger) == before
    async with claimed([engine], "offload"):
        assert engine.state is State.RELEASED
        assert in_ledger(ledger) == sum(adapter.engine.bytes_by_device().values())
    assert in_ledger(ledger) != before


async def test_an_engine_is_measured_for_the_ledger_once_and_again_where_another_driver_had_it(tmp_path: Path) -> None:
    leases, adapter, ledger = tmp_path / "leases", ScriptedAdapter("e"), Tenants(tmp_path / "tenants")
    engine = await driver(adapter, leases, tenants=ledger).connect()

    async def measured() -> bool:
        adapter.journal.clear()
        async with claimed([engine], "offload"):
            return any(entry.kind == MEASURED for entry in adapter.journal)

    assert await measured()
    assert not await measured()
    for another in (resumed_by_another, released_by_another):
        before = in_ledger(ledger)
        await another(adapter, leases)
        adapter.engine.leaked_bytes += 1 << 20  # in its hands it has grown
        assert await measured()
        assert in_ledger(ledger) == sum(adapter.engine.bytes_by_device().values())
        assert in_ledger(ledger) != before
        assert not await measured()
