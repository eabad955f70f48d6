"""Engines that are released together: none is sent a release before all of them are ready for it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from rig import V1, fleet_of, states

from lifecycle import Engine, Fleet, FleetError, Observer, Policy, State
from lifecycle.core.verdicts import Pending
from lifecycle.testing import QUICK, REJECTED, Act, ScriptedAdapter
from lifecycle.testing.journal import Journal

BUSY = Pending(reason="it is busy with something else")


def calls(journal: Journal, name: str) -> list[str]:
    """The names of the calls that this engine was sent."""
    return [line.split(": ")[-1].split("(")[0] for line in journal.calls(name)]


async def drained(*names: str, policy: Policy = QUICK) -> tuple[Fleet, Journal]:
    fleet, journal = await fleet_of(*names, policy=policy)
    await fleet.pause()
    await fleet.drain()
    journal.clear()
    return fleet, journal


async def test_one_that_is_not_ready_keeps_the_others_from_their_release() -> None:
    fleet, journal = await drained("a", "b", "c")
    fleet["b"].adapter.script("prove_idle", BUSY)
    with pytest.raises(FleetError, match=r"still_idle: .*it is busy") as failed:
        await fleet.release(weights=V1)
    assert [error.engine for error in failed.value.exceptions] == ["b"], "the others have not failed"
    assert failed.value.succeeded == ()
    assert [calls(journal, name) for name in "abc"] == [[], [], []]
    assert set(states(fleet).values()) == {"drained"}
    await fleet.release(weights=V1)
    assert set(states(fleet).values()) == {"released"}


async def test_one_that_was_started_again_keeps_the_others_from_their_release() -> None:
    fleet, journal = await drained("a", "b", policy=replace(QUICK, evidence_max_age_s=0))
    fleet["a"].adapter.script("observe", Act(), Act(then=lambda model: model.restart()))  # once it was verified
    with pytest.raises(FleetError, match="it is another process now") as failed:
        await fleet.release(weights=V1)
    assert [error.engine for error in failed.value.exceptions] == ["a"]
    assert calls(journal, "b") == []
    assert fleet["b"].state is State.DRAINED


async def test_those_that_were_kept_from_it_serve_again_and_load_nothing() -> None:
    fleet, journal = await fleet_of("a", "b")
    await fleet.pause()
    await fleet.drain()
    fleet["a"].adapter.script("prove_idle", BUSY)
    journal.clear()
    with pytest.raises(FleetError) as failed:
        await fleet.offload(weights=V1)
    assert [error.engine for error in failed.value.exceptions] == ["a"]
    assert states(fleet) == {"a": "serving", "b": "serving"}
    assert {name: calls(journal, name) for name in "ab"} == {"a": ["resume"], "b": ["resume"]}


async def test_a_move_goes_on_without_one_that_is_gone_by_then() -> None:
    fleet, journal = await drained("a", "b", policy=replace(QUICK, on_failure="quarantine"))
    fleet["a"].adapter.script("prove_idle", Act(then=lambda model: model.die("killed")))
    await fleet.offload(weights=V1)
    assert set(fleet.quarantined) == {"a"}
    assert fleet["b"].memory_is_free
    assert calls(journal, "b") == ["release", "release"]


@pytest.mark.virtual_time
async def test_what_was_asked_before_the_others_took_their_time_is_asked_again() -> None:
    fleet, journal = await drained("slow", "b")
    prove_idle = fleet["slow"].adapter.prove_idle

    async def slowly(*args: Any, **how: Any) -> Any:
        await asyncio.sleep(2.0)
        fleet["b"].adapter.engine.apply("resume", {})
        return await prove_idle(*args, **how)

    fleet["slow"].adapter.prove_idle = slowly  # type: ignore[method-assign]
    with pytest.raises(FleetError, match="externally modified") as failed:
        await fleet.release(weights=V1, deadline_s=10.0)
    assert [error.engine for error in failed.value.exceptions] == ["b"]
    assert "release" not in calls(journal, "b")


class Heard(Observer):
    """Hears what an engine is refused."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.once = asyncio.Event()
        self.error = ""

    def refused(self, engine: str, command: Any, error: Exception) -> None:
        if engine == self.engine:
            self.error = str(error)
            self.once.set()


async def heard_by(heard: Heard) -> Fleet:
    """Two drained engines, with this observer."""
    adapters = [ScriptedAdapter(name) for name in ("a", "b")]
    how: dict[str, Any] = {"policy": QUICK, "observers": [heard], "lease": None}
    fleet = Fleet([Engine(each, name=each.name, probe=each.probe, **how) for each in adapters])
    await fleet.__aenter__()
    await fleet.pause()
    await fleet.drain()
    return fleet


@pytest.mark.virtual_time
async def test_none_waits_for_the_others_beyond_its_deadline() -> None:
    heard = Heard("b")
    fleet = await heard_by(heard)

    async def never(*args: Any, **how: Any) -> Any:
        await asyncio.Event().wait()

    fleet["a"].adapter.prove_idle = never  # type: ignore[method-assign]
    releasing = asyncio.create_task(fleet.release(weights=V1, deadline_s=1.0))
    async with asyncio.timeout(5.0):
        await heard.once.wait()
    assert "all_ready: the others are not ready in" in heard.error
    releasing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await releasing
    assert fleet["b"].state is State.DRAINED


async def test_who_is_kept_from_its_release_is_told_by_whom() -> None:
    heard = Heard("b")
    fleet = await heard_by(heard)
    fleet["a"].adapter.script("prove_idle", BUSY)
    with pytest.raises(FleetError):
        await fleet.release(weights=V1)
    assert "all_ready: the others are not ready: a: a: release refused in state drained: still_idle" in heard.error
    assert "Next: see to the engine that it names, then `engine.release(" in heard.error


async def test_those_that_are_released_again_do_not_wait_for_each_other() -> None:
    fleet, journal = await fleet_of("a", "b")
    await fleet.offload(weights=V1)
    for name in "ab":
        fleet[name].adapter.script("load", REJECTED)
    fleet["a"].adapter.always("prove_idle", BUSY)
    journal.clear()
    with pytest.raises(FleetError):
        await fleet.onload()
    assert fleet["b"].memory_is_free
    assert "release" in calls(journal, "b")
    assert "release" not in calls(journal, "a")
