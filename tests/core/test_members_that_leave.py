"""Engines that leave a live fleet, and those that come in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from members_rig import driven, newcomer, serving_v1
from rig import V2, states

from lifecycle import ConfigurationError, FleetError, Group, State
from lifecycle.core.errors import RouterError
from lifecycle.testing import REJECTED, Journal, ScriptedAdapter, ScriptedRouter

# retire


async def test_one_that_is_retired_is_left_as_it_is_behind_a_closed_router() -> None:
    fleet, journal = await serving_v1("a", "b")
    engine = fleet["b"]
    await fleet.retire("b", deadline_s=5.0)
    assert ([each.name for each in fleet], engine.state) == (["a"], State.SERVING)
    assert fleet.router.closed == {"b"}
    assert journal.calls("b") == []
    with pytest.raises(KeyError, match="no engine 'b'; the fleet has a"):
        await fleet.retire("b", deadline_s=5.0)
    with pytest.raises(ConfigurationError, match="a is the last engine of the fleet"):
        await fleet.retire("a", deadline_s=5.0)
    assert await fleet.adopt(newcomer(journal, "b", version="v1"), deadline_s=5.0)


async def test_a_router_that_does_not_close_keeps_a_member_unless_it_is_gone() -> None:
    fleet, _ = await serving_v1("a", "b", "c")
    fleet.router.close_fails = RouterError("it is not there")
    with pytest.raises(RouterError):
        await fleet.retire("b", deadline_s=5.0)
    assert len(fleet) == 3
    fleet["b"].adapter.engine.die("it was killed")
    await fleet["b"].verify()
    assert fleet["b"].state is State.GONE, "a dead slot is a state"
    await fleet.retire("b", deadline_s=5.0)
    assert [each.name for each in fleet] == ["a", "c"]


# replace


async def test_a_dead_engine_is_replaced_in_its_place() -> None:
    fleet, journal = await serving_v1("a", "b", "c")
    fleet["b"].adapter.engine.die("it was killed")
    await fleet["b"].verify()
    engine = await fleet.replace("b", newcomer(journal, "new"), deadline_s=5.0)
    assert [each.name for each in fleet] == ["a", "new", "c"]
    assert (engine.state, engine.weights_version) == (State.SERVING, "v1")
    async with fleet.offloaded(weights=V2):
        pass
    assert {each.weights_version for each in fleet} == {"v2"}


async def test_the_only_engine_of_a_group_leaves_its_version_to_the_one_in_its_place() -> None:
    fleet, journal = await serving_v1("a")
    fleet["a"].adapter.engine.die("it was killed")
    await fleet["a"].verify()
    engine = await fleet.replace("a", newcomer(journal), deadline_s=5.0)
    assert engine.weights_version == "v1"


async def test_a_live_engine_that_is_replaced_gets_no_requests_and_is_let_go() -> None:
    fleet, journal = await serving_v1("a", "b")
    await fleet.replace("b", newcomer(journal), deadline_s=5.0)
    assert states(fleet) == {"a": "serving", "c": "serving"}
    assert fleet.router.closed == {"b"}
    assert [entry.kind for entry in journal if entry.engine == "b"] == ["router", "aclose"]


class KnowingRouter(ScriptedRouter):
    """It reaches engines by their URLs."""

    url = "router://here"

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal)
        self.known: dict[str, str] = {}

    def knows(self, workers: Mapping[str, Any]) -> None:
        self.known |= {name: worker.url for name, worker in workers.items()}

    async def check(self, engines: Sequence[str]) -> None:
        """It answers."""

    async def aclose(self) -> None:
        """It has no connections."""


async def test_a_router_is_told_where_it_reaches_who_stands_in_a_place() -> None:
    fleet, journal = await serving_v1("a", "b")
    fleet.router = KnowingRouter(journal)
    await fleet.adopt(newcomer(journal), deadline_s=5.0)
    assert fleet.router.known == {"c": "scripted://c"}
    fails = ScriptedAdapter("elsewhere", journal=journal)
    fails.script("load", REJECTED)
    with pytest.raises(FleetError, match="update_weights failed"):
        await fleet.replace("b", driven(fails, "b"), deadline_s=5.0)
    assert fleet.router.known == {"c": "scripted://c", "b": "scripted://b"}
    assert fleet.router.closed == set()


async def test_an_engine_that_was_made_of_a_url_and_is_no_member_has_no_connections_left() -> None:
    fleet, journal = await serving_v1("a")
    made = newcomer(journal)
    made.adapter.script("load", REJECTED)
    fleet._makes = lambda url, groups: made
    with pytest.raises(FleetError, match="update_weights failed"):
        await fleet.adopt("scripted://c", deadline_s=5.0)
    assert journal[-1].kind == "aclose"
    assert journal[-1].engine == "c"


async def test_where_the_new_one_cannot_come_the_other_stays_and_its_router_opens_again() -> None:
    fleet, journal = await serving_v1("a", "b")
    engine = newcomer(journal)
    engine.adapter.script("load", REJECTED)
    with pytest.raises(FleetError, match="c: update_weights failed"):
        await fleet.replace("b", engine, deadline_s=5.0)
    assert states(fleet) == {"a": "serving", "b": "serving"}
    assert fleet.router.closed == {"c"}
    journal.clear()
    with pytest.raises(ConfigurationError, match="is a of this fleet already"):
        await fleet.replace("b", driven(fleet["a"].adapter, "x"), deadline_s=5.0)
    assert not [entry for entry in journal if entry.kind == "router"], "the router was left alone"


async def test_an_engine_is_not_replaced_by_itself() -> None:
    fleet, _ = await serving_v1("a", "b")
    same = driven(fleet["b"].adapter, "b")
    with pytest.raises(ConfigurationError, match="are one engine: they share the boot"):
        await fleet.replace("b", same, deadline_s=5.0)
    assert fleet["b"] is not same
    assert fleet.router.closed == set()


async def test_a_fleet_of_engines_adopts_engines() -> None:
    fleet, _ = await serving_v1("a")
    with pytest.raises(ConfigurationError, match=r"made of engines, so it adopts engines: Engine\(adapter"):
        await fleet.adopt("loopback://127.0.0.1:1", deadline_s=1.0)


async def test_one_that_is_never_part_of_a_move_is_taken_as_it_is() -> None:
    fleet, journal = await serving_v1("a", groups={"default": Group()})
    fleet.router = KnowingRouter(journal)
    engine = await fleet.adopt(newcomer(journal, group="judge", offload=False), deadline_s=5.0)
    assert engine in list(fleet)
    assert journal.calls() == []
    assert fleet.router.known == {"c": "scripted://c"}, "it can be closed for it later"
    assert not [entry for entry in journal if entry.kind == "router"]
    assert fleet.participants() == [fleet["a"]]
