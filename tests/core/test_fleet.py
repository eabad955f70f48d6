"""The fleet's orders on the recorded journal: phases with barriers, groups in order, and what is never touched."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from rig import V1, fleet_of, new_engine, states

from lifecycle import (
    ConfigurationError,
    Fleet,
    FleetError,
    FromDisk,
    GuardRefused,
    InvalidTransition,
    Kept,
    Refuted,
    State,
)
from lifecycle.core.errors import RouterError, RouterNotClosed
from lifecycle.fleet.connect import check_distinct
from lifecycle.fleet.groups import Group
from lifecycle.testing import KEPT_WEIGHTS, KV_CACHE, Journal

ROLES = {"prefill": Group(), "decode": Group(drain_after=("prefill",)), "reward": Group(offload=False)}
NAMES = ("prefill/p0", "decode/d0", "decode/d1", "reward/r0")


def first(journal: Journal, *wanted: str) -> int:
    """Where the first line with these words stands."""
    return next(index for index, entry in enumerate(journal) if all(word in str(entry) for word in wanted))


def last(journal: Journal, *wanted: str) -> int:
    """Where the last line with these words stands."""
    return max(index for index, entry in enumerate(journal) if all(word in str(entry) for word in wanted))


async def test_offload_pauses_all_then_drains_all_then_releases_all() -> None:
    fleet, journal = await fleet_of("a/a0", "a/a1", "b/b0")
    await fleet.offload(weights=V1)
    first_release = first(journal, "call release")
    for engine in fleet:
        assert first(journal, engine.name, "idle -> proved") < first_release
    assert last(journal, "reply pause") < first(journal, "idle")
    assert states(fleet) == dict.fromkeys(("a0", "a1", "b0"), "released")
    assert all(engine.memory_is_free for engine in fleet)


async def test_no_engine_is_released_before_the_slowest_is_idle() -> None:
    fleet, journal = await fleet_of("a", "b", "c")
    fleet["b"].adapter.engine.stubborn = 30
    await fleet.offload(weights=V1)
    assert last(journal, "b: idle -> pending") < first(journal, "b: idle -> proved") < first(journal, "call release")


async def test_no_engine_is_drained_before_every_pause_was_acknowledged() -> None:
    fleet, journal = await fleet_of("a", "b")
    slow = fleet["b"].adapter
    send = slow.send

    async def late(call, *, deadline_s):
        await asyncio.sleep(0.02)
        return await send(call, deadline_s=deadline_s)

    slow.send = late
    await fleet.offload(weights=V1)
    assert first(journal, "b: reply pause") < first(journal, "idle")


async def test_onload_restores_weights_everywhere_before_any_kv_and_resumes_last() -> None:
    fleet, journal = await fleet_of("a/a0", "b/b0")
    await fleet.offload(weights=V1)
    journal.clear()
    results = await fleet.onload()
    assert last(journal, "reply restore(weights)") < first(journal, "call load")
    assert last(journal, "reply load") < first(journal, "call restore(kv_cache)")
    assert last(journal, "reply restore(kv_cache)") < first(journal, "call resume")
    assert [(record.engine, record.command, record.dest) for record in results] == [
        ("a0", "resume", State.SERVING),
        ("b0", "resume", State.SERVING),
    ]
    assert all(engine.adapter.engine.violations == [] for engine in fleet)


async def test_results_stand_in_the_groups_order_whoever_is_ready_first() -> None:
    fleet, _ = await fleet_of("b/b0", "a/a0", "b/b1", "a/a1")
    fleet["b0"].adapter.engine.stubborn = 20
    released = await fleet.offload(weights=V1)
    assert [record.engine for record in released] == ["b0", "b1", "a0", "a1"]
    assert {record.command for record in released} == {"release"}
    assert [record.engine for record in await fleet.onload()] == ["b0", "b1", "a0", "a1"]


async def test_groups_that_do_not_offload_are_never_touched() -> None:
    fleet, journal = await fleet_of(*NAMES, groups=ROLES)
    await fleet.offload(weights=V1)
    await fleet.onload()
    await fleet.pause(engines=["r0", "p0"])
    assert [entry for entry in journal if entry.engine == "r0"] == []
    assert fleet["r0"].state is State.SERVING


@pytest.mark.parametrize("engines", [[], ["r0"]])
async def test_nothing_to_do_returns_nothing_and_waits_for_nothing(engines: list[str]) -> None:
    fleet, journal = await fleet_of(*NAMES, groups=ROLES, router=True)
    for verb in (fleet.offload, fleet.onload, fleet.pause, fleet.drain, fleet.release, fleet.restore_weights):
        assert await verb(engines=engines) == []
    assert journal == []


async def test_a_fleet_of_groups_that_do_not_offload_does_nothing() -> None:
    fleet, journal = await fleet_of("reward/r0", groups=ROLES | {"reward": Group(offload=False)})
    async with fleet.offloaded(weights=V1) as released:
        assert released == []
    assert journal == []


@pytest.mark.parametrize("verb", ["offload", "onload", "pause", "drain", "release", "resume"])
async def test_an_unknown_engine_is_a_key_error_that_names_the_known(verb: str) -> None:
    fleet, journal = await fleet_of("a", "b")
    with pytest.raises(KeyError, match="no engine 'c'; the fleet has a, b"):
        await getattr(fleet, verb)(engines=["a", "c"])
    assert journal == []


async def test_only_those_named_take_part() -> None:
    fleet, journal = await fleet_of("a", "b", "c")
    await fleet.offload(weights=V1, engines=["c", fleet["a"]])
    assert states(fleet) == {"a": "released", "b": "serving", "c": "released"}
    assert {entry.engine for entry in journal} == {"a", "c"}


async def test_prefill_is_idle_before_decode_is_drained() -> None:
    fleet, journal = await fleet_of("decode/d0", "decode/d1", "prefill/p0", "prefill/p1", groups=ROLES)
    fleet["p1"].adapter.engine.stubborn = 10
    await fleet.offload(weights=V1)
    decode = min(first(journal, "d0: idle"), first(journal, "d1: idle"))
    assert max(first(journal, "p0: idle -> proved"), first(journal, "p1: idle -> proved")) < decode
    assert max(last(journal, f"{name}: reply pause") for name in ("d0", "d1", "p0", "p1")) < first(journal, "idle")


async def test_a_step_by_step_drain_keeps_the_groups_order() -> None:
    fleet, journal = await fleet_of("decode/d0", "prefill/p0", groups=ROLES)
    await fleet.pause()
    records = await fleet.drain()
    assert first(journal, "p0: idle -> proved") < first(journal, "d0: idle")
    assert [record.engine for record in records] == ["d0", "p0"]


async def test_step_by_step_goes_round_the_ring() -> None:
    fleet, _ = await fleet_of("a", "b")
    await fleet.pause()
    await fleet.drain()
    await fleet.release(weights=V1)
    await fleet.restore_weights()
    await fleet.update_weights(V1)
    await fleet.restore_kv()
    records = await fleet.resume()
    assert [record.engine for record in records] == ["a", "b"]
    assert states(fleet) == {"a": "serving", "b": "serving"}


async def test_step_by_step_release_is_refused_while_one_is_not_drained() -> None:
    fleet, journal = await fleet_of("a", "b")
    await fleet.pause()
    await fleet.drain(engines=["a"])
    journal.clear()
    with pytest.raises(FleetError, match="refused before anything was sent") as refused:
        await fleet.release(weights=V1)
    assert [error.engine for error in refused.value.exceptions] == ["b"]
    assert isinstance(refused.value.exceptions[0], InvalidTransition)
    assert journal == []
    assert states(fleet) == {"a": "drained", "b": "paused"}


# preflight


@pytest.mark.parametrize(
    ("caps", "how", "says"),
    [
        ({"memory_saver": False}, {"weights": V1}, "without its memory saver"),
        ({}, {}, "name a source"),
        ({}, {"weights": Kept()}, "keeps no backup"),
        ({}, {"weights": V1, "tags": ["weights", "kvcache"]}, "unknown tag kvcache; it has kv_cache, weights"),
        ({}, {"weights": V1, "tags": []}, "no tag is named"),
        ({"update": frozenset({"push"})}, {"weights": V1}, "cannot load weights from"),
        ({"releasable": frozenset()}, {"weights": V1}, "cannot release kv_cache, weights together"),
        ({"pause": {}}, {"weights": V1}, "has no pause mode 'abort'"),
        ({}, {"weights": V1, "mode": "wait"}, "needs a router"),
        ({}, {"weights": V1, "mode": "freeze"}, "never drains"),
    ],
)
async def test_preflight_refuses_before_anything_is_sent(caps: dict, how: dict, says: str) -> None:
    fleet, journal = await fleet_of("a", "b", caps={"b": caps})
    with pytest.raises(FleetError, match=says) as refused:
        await fleet.offload(**how)
    assert "b" in {error.engine for error in refused.value.exceptions}
    assert all(isinstance(error, GuardRefused) for error in refused.value.exceptions)
    assert journal == []
    assert states(fleet) == {"a": "serving", "b": "serving"}


@pytest.mark.parametrize("state", [State.FAILED, State.GONE])
async def test_preflight_refuses_an_engine_that_is_not_known_to_be_anything(state: State) -> None:
    fleet, journal = await fleet_of("a", "b")
    fleet["b"]._session.go("contradicted", reason="a test")
    if state is State.GONE:
        fleet["b"]._session.go("observed_gone", reason="a test")
    with pytest.raises(FleetError, match=r"or leave it out \(engines=\.\.\.\)\. Next: .*`fleet\.recover\(\)`"):
        await fleet.offload(weights=V1)
    assert journal == []


# routers


async def test_the_router_is_closed_before_any_pause_and_opened_last() -> None:
    fleet, journal = await fleet_of("a", "b", router=True)
    async with fleet.offloaded(weights=V1):
        assert max(first(journal, name, "router close") for name in "ab") < first(journal, "call pause")
        assert journal.kinds("router") == ["a: router close", "b: router close"]
    assert min(first(journal, name, "router open") for name in "ab") > last(journal, "answers -> proved")


async def test_a_router_that_cannot_close_is_reopened_and_nothing_is_paused() -> None:
    fleet, journal = await fleet_of("a", "b", router=True)
    fleet.router.close_fails = ConnectionError("the router is away")
    with pytest.raises(ConnectionError, match="the router is away"):
        await fleet.offload(weights=V1)
    assert journal.kinds("router") == ["a: router close", "b: router close", "a: router open", "b: router open"]
    assert journal.calls() == []
    assert not any(engine.in_move for engine in fleet)
    fleet.router.close_fails = None
    await fleet.offload(weights=V1)


async def test_a_router_that_cannot_close_is_not_opened_for_an_engine_that_was_closed_before() -> None:
    fleet, journal = await fleet_of("a", "b", router=True)
    await fleet.pause("abort", engines=["a"])
    fleet.router.close_fails = fleet.router.open_fails = RouterError("the router is away")
    with pytest.raises(RouterNotClosed, match=r"could not be opened again \(the router is away\)"):
        await fleet.offload(weights=V1)
    assert journal.kinds("router")[-3:] == ["a: router close", "b: router close", "b: router open"]


async def test_a_close_that_is_not_confirmed_refuses_and_the_fleet_serves_on() -> None:
    fleet, journal = await fleet_of("a", "b", router=True)
    fleet.router.unconfirmed = frozenset({"b"})
    with pytest.raises(FleetError, match="the router has not confirmed"):
        await fleet.offload(weights=V1)
    assert states(fleet) == {"a": "serving", "b": "serving"}
    assert "b: pause" not in " ".join(journal.calls())
    assert fleet.router.closed == set()


async def test_a_router_that_fails_to_open_says_so() -> None:
    fleet, _ = await fleet_of("a", router=True)
    await fleet.offload(weights=V1)
    fleet.router.open_fails = ConnectionError("the router is away")
    with pytest.raises(FleetError, match="the router is away"):
        await fleet.onload()
    assert fleet["a"].state is State.SERVING
    assert isinstance(fleet["a"].conditions["routed"].verdict, Refuted)
    assert not fleet["a"].in_move


async def test_an_error_of_a_router_that_says_nothing_is_named() -> None:
    """As the one of a wait that took too long."""
    fleet, _ = await fleet_of("a", "b", router=True)
    await fleet.pause("abort", engines=["a"])
    fleet.router.close_fails = fleet.router.open_fails = TimeoutError()
    with pytest.raises(TimeoutError):
        await fleet.offload(weights=V1)
    said = {engine.name: engine.conditions["routed"].verdict.reason for engine in fleet}
    assert said["a"] == "the router could not be closed: TimeoutError"
    assert said["b"] == "the router could not be opened: TimeoutError"
    fleet.router.close_fails = RouterError("the router is away")
    with pytest.raises(RouterNotClosed, match=r"could not be opened again \(TimeoutError\)"):
        await fleet.offload(weights=V1)


async def test_the_mode_that_needs_a_router_waits_for_the_requests() -> None:
    fleet, journal = await fleet_of("a", router=True)
    model = fleet["a"].adapter.engine
    model.submit(2)
    asyncio.get_running_loop().call_later(0.02, model.finish)
    await fleet.offload(weights=V1, mode="wait")
    assert journal.calls("a")[:2] == ["await_idle", "pause(wait)"]
    assert fleet["a"].state is State.RELEASED


async def test_a_step_by_step_pause_closes_the_router_first_and_resume_opens_it() -> None:
    fleet, journal = await fleet_of("a", "b", router=True)
    await fleet.pause()
    assert max(first(journal, name, "router close") for name in "ab") < first(journal, "call pause")
    await fleet.resume()
    assert fleet.router.closed == set()


# what a fleet is made of


def test_a_fleet_that_makes_no_sense_is_refused() -> None:
    journal = Journal()
    engine = new_engine("a", journal=journal, group="x")
    with pytest.raises(ConfigurationError, match="at least one engine"):
        Fleet([])
    with pytest.raises(ConfigurationError, match="name a stands twice"):
        Fleet([engine, new_engine("a")])
    with pytest.raises(ConfigurationError, match="no such group"):
        Fleet([engine], groups={"x": Group(drain_after=("y",))})
    with pytest.raises(ConfigurationError, match="in a circle"):
        Fleet(
            [engine, new_engine("b", group="y")],
            groups={"x": Group(drain_after=("y",)), "y": Group(drain_after=("x",))},
        )


async def test_a_fleet_whose_engines_cannot_be_driven_names_all_of_them() -> None:
    engines = [new_engine(name) for name in "abc"]
    for engine in engines[1:]:
        engine.adapter.engine.reachable = False
    with pytest.raises(ConfigurationError, match=r"(?s)scripted://b.*scripted://c"):
        async with Fleet(engines):
            pass
    assert engines[0].adapter.journal.kinds("aclose") == ["a: aclose"]


async def test_a_kept_fleet_sends_no_load() -> None:
    journal = Journal()
    fleet = Fleet([new_engine(name, KEPT_WEIGHTS, KV_CACHE, journal=journal) for name in "ab"])
    async with fleet, fleet.offloaded(weights=Kept()):
        pass
    assert not any("load" in call for call in journal.calls())
    assert states(fleet) == {"a": "serving", "b": "serving"}


async def test_a_version_that_is_kept_is_not_loaded() -> None:
    journal = Journal()
    fleet = Fleet([new_engine("a", KEPT_WEIGHTS, KV_CACHE, journal=journal)])
    async with fleet, fleet.offloaded(weights=FromDisk("/models/step-0", "v0")):
        pass
    assert not any("load" in call for call in journal.calls())


async def test_an_engine_that_is_gone_shares_no_process_with_another() -> None:
    """The number of a process that has ended may be given to the next one."""
    fleet, _ = await fleet_of("a", "b")
    one, other = fleet
    other._session.commit(replace(other.record, facts=replace(other.facts, boot=one.facts.boot)))
    with pytest.raises(ConfigurationError, match="are one engine"):
        check_distinct(fleet.engines)
    one.adapter.engine.die("killed")
    await one.verify()
    assert one.state is State.GONE
    check_distinct(fleet.engines)
