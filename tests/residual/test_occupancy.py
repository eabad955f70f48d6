"""A trainer takes devices when the ledger and the driver both say that there is room, and leaves them by measure."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from stand_in_nvml import GIB, StandInNvml, gpu, use

from lifecycle import ConfigurationError, Policy
from lifecycle.core.tenants import NoRoom, NotGivenBack, Tenant
from lifecycle.engine import occupancy
from lifecycle.engine.occupancy import occupying
from lifecycle.nodes import this_host
from lifecycle.nodes.driver import NvmlDriver
from lifecycle.nodes.processes import node_name
from lifecycle.store import Tenants

CARD = "GPU-0000aaaa"
POLICY = Policy(poll_s=0.01)
OTHER = Tenant("engine", "engine", "engine e (pid 7 on here)", "other")


class Card:
    """A GPU of 80 GiB, or an instance of one, whose processes come and go."""

    def __init__(self, **changes: Any) -> None:
        self.record = gpu(**changes)

    def hold(self, pid: int, size: int) -> None:
        """This process holds so much of it."""
        others = [each for each in self.record["compute"] if each["pid"] != pid]
        self.record["compute"] = [*others, use(pid, size)]
        used = sum(each["used"] for each in self.record["compute"])
        self.record["memory"] = {"total": 80 * GIB, "used": used, "free": 80 * GIB - used}


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()
    drives(monkeypatch, card)
    monkeypatch.setattr(occupancy, "LEAVE_S", 0.1)
    return card


def drives(monkeypatch: pytest.MonkeyPatch, *cards: Card) -> None:
    """These are the GPUs of this host."""
    driver = NvmlDriver(StandInNvml.of(*(card.record for card in cards)))
    monkeypatch.setattr(this_host, "driver", lambda: driver)


@pytest.fixture
def ledger(tmp_path: Path) -> Tenants:
    return Tenants(tmp_path / "tenants.sqlite3")


def inside(ledger: Tenants, gib: int = 60, device: str = CARD, deadline_s: float = 5.0, **how: Any) -> Any:
    """The trainer's block."""
    return occupying(ledger, {device: gib * GIB}, name="t", deadline_s=deadline_s, policy=POLICY, **how)


def held(ledger: Tenants) -> dict[str, tuple[float, bool]]:
    """GiB that each tenant may hold, and whether that is what it has left."""
    found = ledger.tenancies()
    return {each.tenant.name: ((each.size_bytes or 0) / GIB, each.given_back) for each in found}


async def test_inside_it_may_hold_what_it_named_and_after_it_what_was_measured(card: Card, ledger: Tenants) -> None:
    async with inside(ledger):
        assert held(ledger) == {"t": (60, False)}
        card.hold(os.getpid(), 50 * GIB)
        card.hold(os.getpid(), GIB)
    assert held(ledger) == {"t": (1, True)}


async def test_one_that_never_held_anything_has_left_nothing(card: Card, ledger: Tenants) -> None:
    async with inside(ledger):
        pass
    assert held(ledger) == {}


async def test_what_the_ledger_does_not_know_is_measured_now(card: Card, ledger: Tenants) -> None:
    """Its engine was released and proved; somebody resumed it since, or a process that no ledger knows came."""
    ledger.holds(OTHER, {CARD: 2 * GIB}, given_back=True)
    card.hold(1, 30 * GIB)
    with pytest.raises(NoRoom, match=r"has 51200 MiB free, and t need 61440 MiB; pid 1 .* holds 30720 MiB"):
        async with inside(ledger, deadline_s=0.1):
            raise AssertionError("it was let in")
    assert held(ledger) == {"engine": (2, True)}


async def test_it_waits_until_the_device_is_free(card: Card, ledger: Tenants) -> None:
    card.hold(1, 30 * GIB)
    looked = asyncio.Event()
    taken = occupancy._taken

    async def tells(*asked: Any) -> str:
        why = await taken(*asked)
        looked.set()
        return why

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(occupancy, "_taken", tells)
        entering = asyncio.ensure_future(_enter_and_leave(ledger))
        await looked.wait()
        assert held(ledger) == {"t": (60, False)}, "nobody else gets in before it"
        card.hold(1, GIB)
        await entering


async def _enter_and_leave(ledger: Tenants) -> None:
    async with inside(ledger):
        pass


async def test_it_waits_for_a_tenant_and_names_it(card: Card, ledger: Tenants) -> None:
    ledger.holds(OTHER, {CARD: 30 * GIB}, given_back=False)
    with pytest.raises(NoRoom, match=r"no room in 0.1 s: the budget of GPU-0000aaaa is 81920 MiB.*engine e \(pid 7"):
        async with inside(ledger, deadline_s=0.1):
            raise AssertionError("it was let in")
    ledger.leaves("engine")
    async with inside(ledger):
        pass


async def test_who_gives_up_waits_no_more(card: Card, ledger: Tenants) -> None:
    ledger.holds(OTHER, {CARD: 30 * GIB}, given_back=False)
    entering = asyncio.ensure_future(_enter_and_leave(ledger))
    while not ledger._file._db or not ledger._file._db.execute("SELECT * FROM waiting").fetchall():  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert ledger._file._db.execute("SELECT * FROM waiting").fetchall() == []


async def test_one_that_leaves_and_still_holds_it_is_told_and_keeps_the_device(card: Card, ledger: Tenants) -> None:
    with pytest.raises(NotGivenBack, match="it still holds 40960 MiB of GPU-0000aaaa, and may keep 3072 MiB"):
        async with inside(ledger):
            card.hold(os.getpid(), 40 * GIB)
    assert held(ledger) == {"t": (40, False)}
    card.hold(os.getpid(), GIB)
    async with inside(ledger):
        pass
    assert held(ledger) == {"t": (1, True)}


async def test_what_was_left_behind_is_no_less_left_behind_the_second_time(card: Card, ledger: Tenants) -> None:
    card.hold(os.getpid(), 40 * GIB)
    for _ in range(2):
        with pytest.raises(NotGivenBack, match="it still holds 40960 MiB"):
            async with inside(ledger):
                pass
        assert held(ledger) == {"t": (40, False)}


async def test_one_name_is_inside_once(card: Card, ledger: Tenants) -> None:
    async with inside(ledger, 60):
        with pytest.raises(ConfigurationError, match="t: this process is inside under that name already"):
            async with inside(ledger, 1):
                raise AssertionError("it was let in")
        assert held(ledger) == {"t": (60, False)}
    async with inside(ledger, 1):
        pass


async def test_an_error_inside_comes_through_and_says_what_is_still_held(card: Card, ledger: Tenants) -> None:
    with pytest.raises(ZeroDivisionError) as failed:
        async with inside(ledger):
            card.hold(os.getpid(), 40 * GIB)
            raise ZeroDivisionError
    assert "still holds 40960 MiB" in failed.value.__notes__[0]


async def test_what_cannot_be_measured_at_the_end_was_not_given_back(card: Card, ledger: Tenants) -> None:
    with pytest.raises(NotGivenBack, match="cannot be measured"):
        async with inside(ledger):
            card.record["compute"] = [use(1 << 21, 40 * GIB)]  # a pid that is hidden here
    assert held(ledger) == {"t": (60, False)}


async def test_pids_that_are_hidden_are_an_error_before_it_waits(card: Card, ledger: Tenants) -> None:
    card.hold(1 << 21, GIB)
    with pytest.raises(ConfigurationError, match="what it holds cannot be measured"):
        async with inside(ledger):
            raise AssertionError("it was let in")


async def test_a_mig_instance_is_a_device_and_the_gpu_that_is_divided_is_none(
    card: Card, ledger: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [gpu(uuid=f"MIG-{name}", memory={"total": 40 * GIB, "used": 0, "free": 40 * GIB}) for name in "ab"]
    drives(monkeypatch, Card(mig={"mode": 1, "instances": parts}))
    with pytest.raises(ConfigurationError, match=r"there is no device GPU-0000aaaa here .* MIG instance"):
        async with inside(ledger):
            raise AssertionError("it was let in")
    async with inside(ledger, 30, "MIG-a"), occupying(ledger, {"MIG-b": 40 * GIB}, name="u", deadline_s=5.0):
        assert held(ledger) == {"t": (30, False), "u": (40, False)}
    with pytest.raises(NoRoom, match="budget of MIG-a is 40960 MiB"):
        async with inside(ledger, 41, "MIG-a", deadline_s=0.1):
            raise AssertionError("it was let in")


async def test_the_memory_of_this_host_is_measured_too(ledger: Tenants) -> None:
    host = f"host:{node_name()}"
    async with occupying(ledger, {host: 4 * GIB}, name="t", deadline_s=5.0, policy=POLICY):
        assert held(ledger) == {"t": (4, False)}
    ((size, given_back),) = held(ledger).values()
    assert given_back
    assert 0 < size < 4


@pytest.mark.parametrize(
    ("needs", "why"),
    [
        ({}, "no device is named"),
        ({CARD: 0}, "a number of bytes > 0"),
        ({CARD: 1.5}, "a number of bytes > 0"),
        ({"GPU-none": GIB}, "there is no device GPU-none here"),
        ({"host:elsewhere": GIB}, "there is no device host:elsewhere here"),
    ],
)
async def test_what_cannot_be_taken_is_said_at_once(card: Card, ledger: Tenants, needs: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        async with occupying(ledger, needs, name="t", deadline_s=60.0):
            raise AssertionError("it was let in")
    with pytest.raises(ConfigurationError, match="deadline_s"):
        async with occupying(ledger, {CARD: GIB}, name="t", deadline_s=0):
            raise AssertionError("it was let in")
