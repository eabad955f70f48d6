"""Leases: one driver of an engine at a time, among the drivers of one user on one host."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rig import V1, V2

from lifecycle import ConfigurationError, Engine, EngineHeld, Fleet, FleetError, InvalidTransition, State, Unreachable
from lifecycle.core.lease import Driver, Lease, LeasedEngine, LeaseHeld, LeaseUse
from lifecycle.nodes.processes import node_name, start_mark
from lifecycle.nodes.same_address import address_of
from lifecycle.store.leases import Leases
from lifecycle.testing import LOST, QUICK, ScriptedAdapter

A = Driver("a", "pid 1 on here")
B = Driver("b", "pid 2 on here")
ENGINE = LeasedEngine("here:30000", "boot-1")


def driver(adapter: ScriptedAdapter, lease: Any, **how: Any) -> Engine:
    """One more driver of this engine."""
    return Engine(adapter, name="e", policy=QUICK, probe=adapter.probe, lease=lease, **how)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "leases"


@pytest.fixture
def unusable(path: Path) -> Path:
    """A file in what is no folder."""
    path.write_text("no folder")
    return path / "below"


# the holder


def test_a_second_driver_is_refused_and_told_who_has_it_since_when_and_until_when(path: Path) -> None:
    Leases(path).take(A, ENGINE, LeaseUse("release", until_s=time.time() + 60))
    with pytest.raises(LeaseHeld) as held:
        Leases(path).take(B, ENGINE, LeaseUse("release"))
    assert held.value.lease.who == "pid 1 on here"
    assert held.value.lease.what == "release"
    assert "until 20" in str(held.value)


@pytest.mark.parametrize("other", [LeasedEngine("here:30000", "boot-2"), LeasedEngine("elsewhere:1", "boot-1")])
def test_an_engine_is_known_by_its_address_and_by_its_boot(path: Path, other: LeasedEngine) -> None:
    Leases(path).take(A, ENGINE, LeaseUse("offload"))
    with pytest.raises(LeaseHeld):
        Leases(path).take(B, other, LeaseUse("offload"))
    Leases(path).take(B, LeasedEngine("elsewhere:1", "boot-2"), LeaseUse("offload"))


def test_a_lease_that_was_freed_is_free(path: Path) -> None:
    leases = Leases(path)
    leases.take(A, ENGINE, LeaseUse("offload"))
    leases.free(A, ENGINE)
    assert leases.take(B, ENGINE, LeaseUse("offload")).held
    leases.free(A, ENGINE)  # it has none by now
    assert leases.seen(ENGINE).token == "b"


def test_the_lease_of_a_process_that_ended_is_void(path: Path) -> None:
    take = (
        "import sys, pathlib; from lifecycle.store.leases import *; from lifecycle.core.lease import *;"
        "d = Driver('dead', 'one that ended');"
        "import os, time;"
        "Leases(pathlib.Path(sys.argv[1])).take(d, LeasedEngine('here:30000', 'boot-1'),"
        "LeaseUse('offload', call_until_s=time.time() + 2.0, sends=True)); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", take, str(path)], check=True)
    with pytest.raises(LeaseHeld, match="since what it sent may run until then"):
        Leases(path).take(B, ENGINE, LeaseUse("offload"))
    wait_until(lambda: _taken(path))
    assert Leases(path).seen(ENGINE).token == "b"


def _taken(path: Path) -> bool:
    try:
        Leases(path).take(B, ENGINE, LeaseUse("offload"))
    except LeaseHeld:
        return False
    return True


def wait_until(happened: Any, limit_s: float = 5.0) -> None:
    end = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_lease_of_a_driver_that_nobody_has_any_more_is_void(path: Path) -> None:
    mine = Driver("forgotten", "this process")
    Leases(path).take(mine, ENGINE, LeaseUse("offload"))
    del mine
    gc.collect()
    Leases(path).take(B, ENGINE, LeaseUse("offload"))


def test_a_process_is_told_from_one_that_has_its_pid_later() -> None:
    assert start_mark(os.getpid()) == start_mark(os.getpid()) != ""
    assert start_mark(os.getpid()) != start_mark(1)
    assert start_mark(2**22 + 1) == ""


def test_every_name_of_this_host_is_one_address() -> None:
    here = f"{node_name()}:30000".lower()
    assert {
        address_of(f"{kind}://{host}:30000?name=x")
        for kind, host in [("sglang", "127.0.0.1"), ("loopback", "localhost")]
    } == {here}
    assert address_of("sglang://10.255.255.1:30000") == "10.255.255.1:30000"
    assert address_of("scripted://e") is address_of(None) is None


def test_uses_are_counted_and_not_leases(path: Path) -> None:
    leases = Leases(path)
    assert leases.take(A, ENGINE, LeaseUse("offload")).uses == 0
    assert leases.take(A, ENGINE, LeaseUse("offload", sends=True, kept_in="x")).uses == 1
    assert leases.take(A, ENGINE, LeaseUse("offload", sends=True, kept_in="x")).uses == 1
    leases.free(A, ENGINE)
    again = leases.take(B, ENGINE, LeaseUse("offload"))
    assert (again.uses, again.kept_in) == (1, "x")
    leases.free(B, ENGINE)
    assert leases.take(A, ENGINE, LeaseUse("offload", sends=True)).uses == 2


# engines


async def test_two_drivers_of_one_engine_one_is_refused_by_name_and_nothing_is_sent(path: Path) -> None:
    adapter = ScriptedAdapter("e")
    first = await driver(adapter, Leases(path)).connect()
    second = await driver(adapter, Leases(path)).connect()
    await first.pause()
    calls = adapter.journal.calls()
    with pytest.raises(EngineHeld) as held:
        await second.pause()
    assert f"pid {os.getpid()}" in held.value.who
    assert held.value.who in str(held.value)
    assert held.value.since[:2] == "20"
    assert "serves again" in held.value.until
    with pytest.raises(EngineHeld):
        await second.recover()
    with pytest.raises(EngineHeld):
        second.override_state(State.PAUSED, by="me", reason="a test")
    assert adapter.journal.calls() == calls
    assert await second.verify() is not State.SERVING, "it may look"
    assert adapter.journal.calls() == calls
    await first.resume()
    assert (await second.recover()).state is State.SERVING


async def test_a_lease_is_held_through_a_window_and_freed_after_it(path: Path) -> None:
    adapter = ScriptedAdapter("e")
    first = Fleet([driver(adapter, Leases(path))])
    second = Fleet([driver(adapter, Leases(path))])
    async with first, second:
        async with first.offloaded(weights=V1):
            with pytest.raises(EngineHeld, match="left released"):
                await second.offload(weights=V1)
        async with second.offloaded(weights=V2):
            with pytest.raises(EngineHeld):
                await first.offload(weights=V1)
        assert first.engines[0].state is State.SERVING
        async with first.offloaded():
            pass
        assert adapter.engine.deaths == adapter.engine.violations == []
        assert first.engines[0].desired.version == "v2", "the other's record was read"


async def test_what_was_seen_of_an_engine_while_another_driver_had_it_is_of_before(path: Path) -> None:
    adapter = ScriptedAdapter("e")
    first = await driver(adapter, Leases(path)).connect()
    await first.pause()
    second = await driver(adapter, Leases(path)).connect()
    assert second.state is State.DRAINED
    await first.resume()
    with pytest.raises(InvalidTransition, match="refused in state serving"):
        await second.release(weights=V1)
    assert adapter.engine.deaths == []


async def test_one_that_does_not_answer_after_another_driver_used_it_is_not_driven(path: Path) -> None:
    adapter = ScriptedAdapter("e")
    first = await driver(adapter, Leases(path)).connect()
    second = await driver(adapter, Leases(path)).connect()
    async with Fleet([first]).offloaded(weights=V1):
        pass
    adapter.script("observe", LOST)
    with pytest.raises(Unreachable, match="after another driver used it"):
        await second.pause()
    await second.pause()
    assert second.desired.version == "v1", "what it missed is not forgotten"


async def test_a_driver_that_is_closed_has_its_engine_no_more(path: Path) -> None:
    adapter = ScriptedAdapter("e")
    first = await driver(adapter, Leases(path)).connect()
    second = await driver(adapter, Leases(path)).connect()
    await first.pause()
    await first.aclose()
    with pytest.raises(InvalidTransition):
        await second.pause()
    assert second.state is State.DRAINED, "what the first kept, and nothing runs"
    await second.resume()


async def test_a_move_takes_every_lease_before_anything_is_sent_or_none(path: Path) -> None:
    one, two = ScriptedAdapter("one"), ScriptedAdapter("two")
    other = await driver(two, Leases(path)).connect()
    await other.pause()
    async with Fleet([new_driver(each, path) for each in (one, two)]) as fleet:
        with pytest.raises(EngineHeld, match="two: offload refused"):
            await fleet.offload(weights=V1)
        assert one.journal.calls() == []
        third = await driver(one, Leases(path)).connect()
        await third.pause()


def new_driver(adapter: ScriptedAdapter, path: Path) -> Engine:
    return Engine(adapter, policy=QUICK, probe=adapter.probe, lease=Leases(path))


async def test_what_was_refused_before_anything_was_sent_keeps_no_lease(path: Path) -> None:
    adapter = ScriptedAdapter("e")
    first = await driver(adapter, Leases(path)).connect()
    second = await driver(adapter, Leases(path)).connect()
    with pytest.raises(InvalidTransition):
        await first.drain()
    await second.pause()
    await second.aclose()
    with pytest.raises(InvalidTransition):
        await first.restore_kv()
    third = await driver(adapter, Leases(path)).connect()
    await third.release(weights=V1)


async def test_of_an_engine_that_another_driver_used_nothing_is_believed_where_it_kept_no_record(path: Path) -> None:
    adapter = ScriptedAdapter("e")
    function = Leases(path)
    first = await driver(adapter, _asked(function)).connect()
    second = await driver(adapter, _asked(function)).connect()
    async with Fleet([first]).offloaded(weights=V1):
        pass
    assert second.facts.contents["weights"].version == "v0", "what it believed"
    await second.recover()
    assert adapter.engine.admission == "closed", "of unknown weights it serves nothing"
    assert second.weights_refusal() is not None
    assert adapter.engine.deaths == adapter.engine.violations == []
    await second.update_weights(V2)
    await second.resume()


def _asked(holder: Leases) -> Any:
    """A holder as a function, which keeps no records."""

    def ask(question: str, **given: Any) -> Any:
        return getattr(holder, question)(**given)

    return ask


async def test_no_lease_by_name_and_none_for_an_engine_in_this_process(path: Path) -> None:
    adapter = ScriptedAdapter("e")
    for first, second in [(None, None), ("user", "user")]:
        engines = [await driver(adapter, lease).connect() for lease in (first, second)]
        assert [each._session.owner.holder for each in engines] == [None, None]
        assert [each._session.shared for each in engines] == [None, None]


async def test_a_holder_that_cannot_be_asked_is_refused_or_warned_of(
    unusable: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = ScriptedAdapter("e")
    with pytest.raises(ConfigurationError, match=r"lease=None drives without a lease.*unleased='warn'"):
        await driver(adapter, Leases(unusable)).connect()
    engine = Engine(adapter, policy=replace(QUICK, unleased="warn"), probe=adapter.probe, lease=Leases(unusable))
    await engine.connect()
    assert "no other driver is kept away" in caplog.text
    await engine.pause()


async def test_what_a_lease_is_may_not_be_anything() -> None:
    with pytest.raises(ConfigurationError, match="'user', or None"):
        driver(ScriptedAdapter("e"), 3)


async def test_two_that_cycle_one_engine_each_wait_for_the_other(path: Path) -> None:
    adapter = ScriptedAdapter("e")

    async def cycles(fleet: Fleet, source: Any) -> int:
        refused = 0
        for _ in range(5):
            while True:
                try:
                    async with fleet.offloaded(weights=source):
                        await asyncio.sleep(0)
                    break
                except (EngineHeld, FleetError):
                    refused += 1
                    await asyncio.sleep(0.002)
            await asyncio.sleep(0.002)
        return refused

    fleets = [Fleet([driver(adapter, Leases(path))]) for _ in range(2)]
    async with fleets[0], fleets[1]:
        refused = await asyncio.gather(cycles(fleets[0], V1), cycles(fleets[1], V2))
    assert adapter.engine.deaths == adapter.engine.violations == []
    assert adapter.engine.admission == "open"
    assert sum(refused) > 0


def test_a_lease_says_itself() -> None:
    lease = Lease("t", "pid 7", "release", True, 0.0, None)
    assert str(lease).startswith("pid 7 has it for release, since 19")
    assert lease.until == "the engine serves again or that process ends"
