"""A plan by group: one move, with its barriers, in which each group gives what it gives."""

from __future__ import annotations

from typing import Any

import pytest
from rig import V1, V2, fleet_of, states

from lifecycle import ConfigurationError, Fleet, FleetError, Group, GroupPlan, Kept, State
from lifecycle.testing import REJECTED
from lifecycle.testing.scripted import KEPT_WEIGHTS, KV_CACHE

KEEPS = {"tags": (KEPT_WEIGHTS, KV_CACHE)}
PLAN = {
    "policy": GroupPlan(weights=V2),
    "teacher": GroupPlan(weights=Kept(), mode="keep"),
    "reward": GroupPlan(tags=["kv_cache"]),
    "judge": GroupPlan(offload=False),
}


async def four_groups(**how: Any) -> tuple[Fleet, Any]:
    return await fleet_of("policy/p", "teacher/t", "reward/r", "judge/j", caps={"t": KEEPS}, router=True, **how)


async def test_each_group_gives_what_its_plan_says_in_one_move() -> None:
    fleet, journal = await four_groups()
    released = await fleet.offload(weights=V1, plan=PLAN)
    assert [each.engine for each in released] == ["p", "t", "r"]
    assert states(fleet) == {"p": "released", "t": "released", "r": "released", "j": "serving"}
    assert [sorted(fleet[name].facts.unmapped()) for name in "ptr"] == [["kv_cache", "weights"]] * 2 + [["kv_cache"]]
    assert [fleet[name].facts.paused_by for name in "ptr"] == ["abort", "keep", "abort"]
    assert [fleet[name].desired.version for name in "ptr"] == ["v2", "v0", "v1"]
    assert journal.calls("j") == []
    kinds = [call.partition(": ")[2].partition("(")[0] for call in journal.calls()]
    assert kinds.index("release") > max(at for at, kind in enumerate(kinds) if kind == "pause"), "one barrier for all"
    await fleet.onload()
    assert [str(fleet[name].facts.contents["weights"]) for name in "ptj"] == ["loaded(v2)", "kept(v0)", "launched(v0)"]


async def test_what_a_plan_does_not_say_is_as_the_move_says() -> None:
    fleet, _ = await fleet_of("policy/p", "teacher/t", "other/o")
    await fleet.offload(["kv_cache"], weights=V1, mode="keep", plan={"policy": GroupPlan(tags={"weights", "kv_cache"})})
    assert [sorted(each.facts.unmapped()) for each in fleet] == [["kv_cache", "weights"], ["kv_cache"], ["kv_cache"]]
    assert {each.facts.paused_by for each in fleet} == {"keep"}
    assert {each.desired.version for each in fleet} == {"v1"}
    await fleet.onload()
    await fleet.offload(weights=V1, mode="keep", plan={"policy": GroupPlan(weights=V2, mode="abort")})
    assert [each.desired.version for each in fleet] == ["v2", "v1", "v1"]
    assert [each.facts.paused_by for each in fleet] == ["abort", "keep", "keep"]


async def test_a_window_has_the_engines_of_its_plan() -> None:
    fleet, journal = await four_groups()
    async with fleet.offloaded(plan=PLAN) as window:
        assert [engine.name for engine in window.engines] == ["p", "t", "r"]
        async with fleet.offloaded(weights=V1, engines=["j"]):
            pass
        await window.update_weights({"policy": V1})
        assert window.versions == {"p": "v1", "t": "v0", "r": "v0"}
    assert set(states(fleet).values()) == {"serving"}
    assert "load" not in " ".join(journal.calls("t") + journal.calls("r"))


async def test_where_one_group_fails_all_come_back_with_the_weights_of_before() -> None:
    fleet, _ = await four_groups()
    async with fleet.offloaded(weights=V1):
        pass
    fleet["t"].adapter.script("release", REJECTED)
    with pytest.raises(FleetError, match="t: release failed"):
        await fleet.offload(plan=PLAN)
    assert set(states(fleet).values()) == {"serving"}
    assert {engine.weights_version for engine in fleet} == {"v1"}


async def test_a_plan_in_which_nobody_takes_part_does_nothing() -> None:
    fleet, journal = await fleet_of("policy/p")
    assert await fleet.offload(plan={"policy": GroupPlan(offload=False)}) == []
    async with fleet.offloaded(plan={"policy": GroupPlan(offload=False)}) as window:
        assert list(window) == window.engines == await window.restore_kv() == []
    assert journal.calls() == []


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ({"polciy": GroupPlan()}, "there is no group 'polciy'; the fleet has policy, reward"),
        ({"policy": {"tags": ["kv_cache"]}}, "the plan of group 'policy' must be a GroupPlan"),
        ({"reward": GroupPlan()}, "group 'reward' is never part of a move"),
    ],
)
async def test_a_plan_for_what_there_is_not_is_refused_before_anything_is_sent(plan: Any, why: str) -> None:
    fleet, journal = await fleet_of("policy/p", "reward/r", groups={"policy": Group(), "reward": Group(offload=False)})
    with pytest.raises(ConfigurationError, match=why):
        await fleet.offload(weights=V1, plan=plan)
    with pytest.raises(ConfigurationError, match=why):
        async with fleet.offloaded(weights=V1, plan=plan):
            raise AssertionError("entered")
    assert journal.calls() == []
    assert await fleet.offload(weights=V1, plan={"reward": GroupPlan(offload=False)}), "that it stays may be said"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"tags": "kv_cache"}, "a collection of tags, or None"),
        ({"tags": []}, "a collection of tags, or None"),
        ({"weights": "v1"}, "is no source of weights"),
        ({"offload": False, "mode": "keep"}, "takes no part in the move"),
    ],
)
def test_a_plan_that_says_nothing_that_could_be_done_is_refused(given: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        GroupPlan(**given)


async def test_a_mode_or_a_tag_that_an_engine_lacks_is_refused_before_anything_is_sent() -> None:
    fleet, journal = await four_groups()
    for wrong in (GroupPlan(mode="nap"), GroupPlan(tags=["wieghts"])):  # type: ignore[arg-type]
        with pytest.raises(FleetError, match="refused before anything was sent: t: "):
            await fleet.offload(weights=V1, plan={"teacher": wrong})
    assert journal.calls() == []
    assert fleet["p"].state is State.SERVING
