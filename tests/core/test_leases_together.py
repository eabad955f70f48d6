"""Leases of several engines in one transaction, and those of a move, whose commands write none."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from group_rig import FILE, drained, traced
from rig import V1

from lifecycle import ConfigurationError, Fleet, Unreachable
from lifecycle.core.lease import Driver, LeasedEngine, LeaseHeld, LeaseUse
from lifecycle.engine.owner import Owner
from lifecycle.store.leases import Leases
from lifecycle.testing import QUICK


def test_leases_are_taken_in_one_transaction_and_each_is_refused_by_itself(tmp_path: Path) -> None:
    leases, a, b = Leases(tmp_path / FILE), Driver("a", "pid 1 on here"), Driver("b", "pid 2 on here")
    leases.take(b, LeasedEngine("here:2"), LeaseUse("offload"))
    with leases._file.asking() as db:
        changes = traced(db)
    taken = leases.take_all([(a, LeasedEngine(f"here:{port}"), LeaseUse("pause")) for port in (1, 2, 3)])
    assert changes.count("COMMIT") == 1
    assert isinstance(taken[1], LeaseHeld)
    assert taken[1].lease.who == "pid 2 on here"
    assert [leases.seen(LeasedEngine(f"here:{port}")).token for port in (1, 2, 3)] == ["a", "b", "a"]  # type: ignore[union-attr]


def owner(leases: Any, name: str = "e") -> Owner:
    return Owner(leases, name=name, address="here:1")


def test_a_command_of_a_move_whose_lease_is_held_writes_nothing_and_finds_out_where_it_was_lost(tmp_path: Path) -> None:
    leases = Leases(tmp_path / FILE)
    mine, other = owner(leases), owner(leases)
    assert not mine.goes_on("boot"), "it has none"
    mine.take("boot", "offload", None)
    with leases._file.asking() as db:
        changes = traced(db)
    assert mine.goes_on("boot")
    assert "COMMIT" not in changes
    mine.sends("boot", time.time() + 60.0)
    assert not mine.goes_on("boot"), "what was answered may not be said to run: it is taken again"
    mine.sends("boot", time.time() - 1.0)
    assert mine.goes_on("boot")
    leases.free(mine.driver, LeasedEngine("here:1"))
    other.take("boot", "offload", None)
    with pytest.raises(LeaseHeld):
        mine.goes_on("boot")


async def test_a_move_takes_and_rests_its_leases_once(tmp_path: Path) -> None:
    leases = Leases(tmp_path / FILE)
    engines = await drained(tmp_path, "a", "b", lease=leases)
    with leases._file.asking() as db:
        changes = traced(db)
    await Fleet(engines).offload(weights=V1)
    assert changes.count("COMMIT") == 2 + 2 + 2, "of each its take and rest; of the two calls one for both"


_FORK = """
import os
from lifecycle.store.leases import _own_mark
_own_mark(os.getpid())
child = os.fork()
if not child:
    os._exit(_own_mark.cache_info().currsize)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_process_that_was_forked_does_not_go_by_the_mark_of_another() -> None:
    """Its pid may be one that an ancestor had."""
    assert subprocess.run([sys.executable, "-c", _FORK], check=False).returncode == 0


def test_a_lease_that_is_freed_says_of_no_call_that_it_may_run(tmp_path: Path) -> None:
    leases = Leases(tmp_path / FILE)
    mine, other = owner(leases), owner(leases)
    mine.take("boot", "release", None)
    mine.sends("boot", time.time() + 60.0)
    mine.rests("boot", "serving", keep=False)
    other.take("boot", "release", None)
    with leases._file.asking() as db:
        changes = traced(db)
    other.rests("boot", "serving", keep=False)
    assert changes.count("COMMIT") == 1, "it is not said to be held before"
    mine.take("boot", "release", None)


@pytest.mark.parametrize("unrecorded", ["refuse", "warn"])
async def test_where_a_lease_cannot_be_written_the_call_is_not_sent_unless_the_policy_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unrecorded: Any
) -> None:
    leases = Leases(tmp_path / FILE)
    (engine,) = await drained(tmp_path, "a", lease=leases, policy=replace(QUICK, unrecorded=unrecorded))
    take_all = leases.take_all

    def breaks(asked: Any) -> Any:
        if asked[0][2].sends:
            raise ConfigurationError("who drives it cannot be written down")
        return take_all(asked)

    monkeypatch.setattr(leases, "take_all", breaks)
    if unrecorded == "warn":
        await engine.release(weights=V1)
        assert engine.memory_is_free
    else:
        with pytest.raises(Unreachable, match="not sent, since that could not be written down"):
            await engine.release(weights=V1)
        assert "release" not in engine.adapter.journal.calls()
