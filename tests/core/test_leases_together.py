"""Leases of several engines in one transaction, and those of a move, whose commands write none."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from group_rig import FILE, drained, traced
from journal_rig import read
from rig import V1

from lifecycle import ConfigurationError, Engine, EngineHeld, Fleet, Unreachable
from lifecycle.core.lease import Driver, LeasedEngine, LeaseHeld, LeaseUse
from lifecycle.engine.owner import Owner, take_together
from lifecycle.store.leases import Leases
from lifecycle.testing import QUICK, ScriptedAdapter


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
    fleet = Fleet(engines)
    await fleet.offload(weights=V1)
    assert changes.count("COMMIT") == 1 + 2 + 1, "all are taken, and rest; of the two calls one for both"
    changes.clear()
    await fleet.onload()
    assert changes.count("COMMIT") == 1 + 2 + 2 + 1, "of the two that restore, that each is sent, and was answered"
    assert all(engine._session.owner.lease is None for engine in engines)


@pytest.mark.parametrize("over", ["another has it", "another had it", "it ended"])
def test_a_lease_that_is_over_is_not_taken_again_to_say_that_a_call_was_answered(tmp_path: Path, over: str) -> None:
    leases = Leases(tmp_path / FILE)
    mine, other, engine = owner(leases), owner(leases), LeasedEngine("here:1", "boot")
    mine.take("boot", "offload", None)
    mine.sends("boot", time.time() + 60.0)
    assert take_together([mine.to_say_answered("boot")]) == [None]
    assert mine.to_say_answered("boot") is None, "it says so no more"
    mine.sends("boot", time.time() + 60.0)
    uses = mine.fence
    leases.free(mine.driver, engine)
    with leases._file.asking() as db:
        db.execute("UPDATE leases SET call_until = NULL")
    if over != "it ended":
        other.take("boot", "offload", None)
        other.sends("boot", None)
    if over == "another had it":
        other.free("boot")
    (problem,) = take_together([mine.to_say_answered("boot")])
    assert isinstance(problem, LeaseHeld)
    found = leases.seen(engine)
    assert found is not None
    assert found.held == (over == "another has it")
    if over == "it ended":  # a call takes it again, and counts
        mine.sends("boot", None)
        assert mine.fence == uses + 1
    else:
        with pytest.raises(LeaseHeld):
            mine.sends("boot", None)
        with pytest.raises(LeaseHeld):
            mine.sends("boot", time.time() + 60.0)


async def test_one_lease_that_another_has_leaves_the_others_of_a_move_free(tmp_path: Path) -> None:
    leases = Leases(tmp_path / FILE)
    engines, other = [], Driver("other", "pid 9 on here")
    for adapter in map(ScriptedAdapter, "abc"):
        engine = Engine(adapter, name=adapter.name, policy=QUICK, probe=adapter.probe, lease=leases)
        engines.append(await engine.connect())
    leases.take(other, LeasedEngine("scripted://b"), LeaseUse("offload"))
    with pytest.raises(EngineHeld, match=r"b: .*pid 9 on here"):
        await Fleet(engines).offload(weights=V1)
    held = [leases.seen(LeasedEngine(f"scripted://{name}")) for name in "abc"]
    assert [lease is not None and lease.held for lease in held] == [False, True, False]
    assert all(engine._session.owner.lease is None for engine in engines)


async def test_what_a_move_did_is_on_disk_before_its_leases_are_free(tmp_path: Path) -> None:
    seen: list[str] = []

    class Looks(Leases):
        def free_all(self, freed: Sequence[tuple[Driver, LeasedEngine]]) -> None:
            seen.extend([str(len(freed)), read(tmp_path)[-1].kind])
            super().free_all(freed)

    fleet = Fleet(await drained(tmp_path, "a", "b", lease=Looks(tmp_path / "leases")))
    await fleet.offload(weights=V1)
    await fleet.onload()
    assert seen == ["2", "MovePhase"]


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
