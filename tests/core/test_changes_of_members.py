"""Changes of members that meet each other, or fail late: the fleet and its router are as one of them left them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from members_rig import driven, newcomer, serving_v1
from rig import V2, states

from lifecycle import ConfigurationError, Engine, Fleet, FleetError, Group, State
from lifecycle.core.errors import RouterError
from lifecycle.testing import REJECTED, ScriptedAdapter


async def with_a_dead_slot() -> tuple[Fleet, Any]:
    fleet, journal = await serving_v1("a", "b", "z")
    fleet["b"].adapter.engine.die("it was killed")
    await fleet["b"].verify()
    return fleet, journal


async def test_two_that_replace_one_slot_do_not_both() -> None:
    fleet, journal = await with_a_dead_slot()
    first, second = newcomer(journal, "c"), newcomer(journal, "d")
    done = await asyncio.gather(
        fleet.replace("b", first, deadline_s=5.0), fleet.replace("b", second, deadline_s=5.0), return_exceptions=True
    )
    assert done[0] is first
    assert isinstance(done[1], KeyError)
    assert "no engine 'b'; the fleet has a, c, z" in str(done[1])
    assert states(fleet) == {"a": "serving", "c": "serving", "z": "serving"}
    assert [entry for entry in journal if entry.engine == "d"] == [], "it was not even asked"


async def test_who_stands_in_a_place_under_the_same_name_is_not_replaced_for_the_one_before() -> None:
    fleet, journal = await with_a_dead_slot()
    old = fleet["b"]
    made = [driven(ScriptedAdapter(where, journal=journal), "b") for where in ("new", "other")]
    done = await asyncio.gather(
        *(fleet.replace("b", each, deadline_s=5.0) for each in made),
        fleet.retire("b", deadline_s=5.0),
        return_exceptions=True,
    )
    assert fleet["b"] is done[0] is made[0]
    for problem in done[1:]:
        assert isinstance(problem, ConfigurationError)
        assert "no member any more: scripted://new stands in its place" in str(problem)
    with pytest.raises(ConfigurationError, match="stands in its place"):
        await fleet.retire(old, deadline_s=5.0)
    assert len(fleet) == 3


async def test_two_that_retire_one_engine_do_not_both() -> None:
    fleet, _ = await serving_v1("a", "b")
    done = await asyncio.gather(*(fleet.retire("b", deadline_s=5.0) for _ in "12"), return_exceptions=True)
    assert done[0] is None
    assert isinstance(done[1], KeyError)


def made_in(fleet: Fleet, made: dict[str, tuple[Engine, Group]]) -> None:
    """The fleet makes these engines of their URLs, each of which says what its group is."""

    def makes(url: str, groups: dict[str, Group]) -> Engine:
        engine, group = made[url.partition("?")[0]]
        groups[engine.group] = group
        return engine

    fleet._makes = makes


async def test_both_of_two_adoptions_have_their_groups() -> None:
    fleet, journal = await serving_v1("a")
    made_in(
        fleet,
        {
            "s://c:1": (newcomer(journal, "c", group="teacher"), Group(drain_after=("default",))),
            "s://d:1": (newcomer(journal, "d", group="judge"), Group(drain_after=("default",))),
            "s://e:1": (newcomer(journal, "e", group="judge"), Group(drain_after=("teacher",))),
        },
    )
    await asyncio.gather(*(fleet.adopt(url, deadline_s=5.0) for url in ("s://c:1", "s://d:1", "s://e:1")))
    assert fleet.groups["teacher"] == Group(drain_after=("default",))
    assert fleet.groups["judge"] == Group(drain_after=("default", "teacher"))


@pytest.mark.parametrize("what", ["quarantine", "closed", "open"])
async def test_a_replacement_that_fails_leaves_the_router_as_it_was(what: str) -> None:
    fleet, journal = await serving_v1("a", "b")
    if what == "quarantine":
        fleet["b"].set_quarantined("a test")
    if what == "closed":
        await fleet.pause(engines=["b"])
        await fleet["b"].resume()
    assert fleet["b"].state is State.SERVING
    engine = newcomer(journal)
    engine.adapter.script("load", REJECTED)
    with pytest.raises(FleetError, match="c: update_weights failed"):
        await fleet.replace("b", engine, deadline_s=5.0)
    assert fleet.router.closed == ({"c"} if what == "open" else {"b", "c"})


@pytest.mark.parametrize("quarantined", [True, False])
async def test_a_router_that_does_not_close_opens_again_for_those_only_for_which_it_was_open(quarantined: bool) -> None:
    fleet, journal = await serving_v1("a", "b")
    if quarantined:
        fleet["b"].set_quarantined("a test")
    fleet.router.close_fails = RouterError("it is not there")
    with pytest.raises(RouterError):
        await fleet.retire("b", deadline_s=5.0)
    opened = [entry.engine for entry in journal if (entry.kind, entry.name) == ("router", "open")]
    assert opened == ([] if quarantined else ["b"])


@pytest.mark.parametrize("change", ["adopt", "replace"])
async def test_groups_that_do_not_fit_are_refused_before_the_newcomer_is_asked_anything(change: str) -> None:
    fleet, journal = await serving_v1("a", "b")
    made_in(fleet, {"s://c:1": (newcomer(journal, "c", group="teacher"), Group(drain_after=("nobody",)))})
    with pytest.raises(ConfigurationError, match="group teacher drains after 'nobody', and there is no such group"):
        if change == "adopt":
            await fleet.adopt("s://c:1", deadline_s=5.0)
        else:
            await fleet.replace("b", "s://c:1", deadline_s=5.0)
    assert [entry.kind for entry in journal] == ["aclose"], "of what was made"
    assert fleet.router.closed == set()
    assert set(fleet.groups) == {"default"}


@pytest.mark.parametrize("change", ["adopt", "replace"])
async def test_a_router_is_closed_for_one_that_does_not_become_a_member_in_the_end(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, journal = await serving_v1("a", "b")

    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(fleet, "_have", full)
    with pytest.raises(MemoryError):
        if change == "adopt":
            await fleet.adopt(newcomer(journal), deadline_s=5.0)
        else:
            await fleet.replace("b", newcomer(journal), deadline_s=5.0)
    assert fleet.router.closed == {"c"}


async def test_a_newcomer_for_which_the_router_was_opening_when_it_was_cancelled_is_closed_again() -> None:
    fleet, journal = await serving_v1("a")
    opening, opens = asyncio.Event(), fleet.router.open

    async def hangs(engines: list[str]) -> None:
        await opens(engines)
        opening.set()
        await asyncio.Event().wait()

    fleet.router.open = hangs
    joining = asyncio.create_task(fleet.adopt(newcomer(journal), weights=V2, deadline_s=5.0))
    await opening.wait()
    joining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await joining
    assert fleet.router.closed == {"c"}
    assert len(fleet) == 1
