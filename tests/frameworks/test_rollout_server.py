"""slime's verbs over scripted engines: orders, skips, results, and what is refused (contracts, A)."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from frameworks.servers import Actors, Group, cycle, push

from lifecycle import ConfigurationError, Fleet, FleetError, GuardRefused, Kept, State
from lifecycle.frameworks.server import AsyncRolloutServer
from lifecycle.frameworks.slots import FleetMembers, SlotMembers
from lifecycle.testing import CUDA_GRAPH, DIE_AFTER, KEPT_WEIGHTS, KV_CACHE, WEIGHTS

# orders


async def test_all_pauses_then_all_drains_then_all_releases_over_every_group() -> None:
    actors = Actors()
    server = actors.server(Group(["a", "b"]), Group(["c"]))
    await server.offload()
    assert actors.last("reply pause") < actors.first("idle")
    for name in "abc":
        assert actors.first(f"{name}: idle -> proved") < actors.first("call release")
    assert actors.states == dict.fromkeys("abc", "released")


async def test_onload_weights_restores_weights_alone_and_resumes_nothing() -> None:
    actors = Actors(tags=(WEIGHTS, KV_CACHE, CUDA_GRAPH))
    server = actors.server(Group(["a", "b"]))
    await server.offload()
    actors.journal.clear()
    await server.onload_weights()
    assert actors.calls() == ["a: restore(weights)", "b: restore(weights)"]
    assert actors.states == dict.fromkeys("ab", "weights_restored")


async def test_onload_kv_restores_kv_and_graphs_of_all_before_any_continues() -> None:
    actors = Actors(tags=(WEIGHTS, KV_CACHE, CUDA_GRAPH))
    server = actors.server(Group(["a", "b"]))
    await cycle(server)
    for tag in ("kv_cache", "cuda_graph"):
        assert actors.last(f"reply restore({tag})") < actors.first("call resume")
    assert actors.states == dict.fromkeys("ab", "serving")
    assert all(engine.desired.version == "v1" for engine in actors.made.values())


async def test_the_groups_of_several_servers_have_one_barrier() -> None:
    """There, one server is offloaded after another: the first gives memory back while the second still generates."""
    actors = Actors()
    policy, reward = [Group(["p0", "p1"])], [Group(["r0"])]
    server = actors.server(*policy, *reward)
    await server.offload()
    assert actors.last("idle -> proved") > actors.first("r0: idle -> proved")
    assert actors.first("r0: idle -> proved") < actors.first("p0: call release")


# who takes part, and results


async def test_groups_that_do_not_offload_and_empty_slots_are_passed_over() -> None:
    actors = Actors()
    server = actors.server(Group(["a", None]), Group(["teacher"], needs_offload=False), Group([None, "b"]))
    await cycle(server)
    assert list(actors.made) == ["a", "b"], "no engine is made of a handle that is never called"


async def test_nothing_to_do_returns_an_empty_list_and_waits_for_nothing() -> None:
    actors = Actors()
    server = actors.server(Group([None, None]), Group(["teacher"], needs_offload=False))
    assert [await server.offload(), await server.onload_weights(), await server.onload_kv()] == [[], [], []]
    assert await server.recover() == []
    async with server.updating_weights("v1") as engines:
        assert engines == []
    assert (actors.made, list(actors.journal)) == ({}, [])


async def test_results_stand_in_the_order_of_the_groups_whoever_answers_first() -> None:
    actors = Actors(tags=(WEIGHTS, KV_CACHE))
    server = actors.server(Group(["c", "a"]), Group(["b"]))
    for engine in await server.engines():
        answering(engine)
    assert await server.offload() == [["c release kv_cache", "c release weights"], *both("a"), *both("b")]
    assert await server.onload_weights() == ["c restore weights", "a restore weights", "b restore weights"]
    async with server.updating_weights("v1") as engines:
        await push(engines)
    assert await server.onload_kv() == [f"{name} restore kv_cache" for name in "cab"]
    assert await server.onload_kv() == [], "all of them serve already"


def both(name: str) -> list[list[str]]:
    return [[f"{name} release kv_cache", f"{name} release weights"]]


def answering(engine: Any) -> None:
    """What the engine answers to each call that moves memory names it."""
    adapter, send = engine.adapter, engine.adapter.send

    async def sent(call: Any, *, deadline_s: float) -> Any:
        reply = await send(call, deadline_s=deadline_s)
        tags = call.args.get("tags", call.args.get("tag", ""))
        said = tags if isinstance(tags, str) else " ".join(tags)
        return type(reply)(reply.outcome, reply.status, reply.detail, f"{engine.name} {call.name} {said}")

    adapter.send = sent


async def test_a_slot_whose_process_is_gone_is_passed_over_and_named(caplog: pytest.LogCaptureFixture) -> None:
    actors = Actors()
    server = actors.server(Group(["a", "b"]))
    await server.offload()
    actors.made["b"].adapter.engine.die("killed")
    await actors.made["b"].verify()
    assert actors.made["b"].state is State.GONE
    with caplog.at_level(logging.WARNING):
        assert len(await server.onload_weights()) == 1
    assert "b is passed over: its process is gone" in caplog.text


async def test_a_recovered_engine_ends_in_weights_restored_and_nobody_else_is_touched() -> None:
    actors, group = Actors(), Group(["a", "b"])
    server = actors.server(group)
    await server.offload()
    await server.onload_weights()
    group.engines[1] = None  # its health check killed it
    await server.onload_weights()
    assert "b: aclose" in map(str, actors.journal), "it was let go with its slot"
    group.engines[1] = "b2"
    actors.journal.clear()
    assert await server.recover() == [None]
    assert actors.states["b2"] == "weights_restored"
    assert actors.calls("a") == []
    assert actors.first("b2: idle -> proved") < actors.first("b2: call release")
    async with server.updating_weights("v1") as engines:
        await push(engines)
    await server.onload_kv()
    assert actors.states == {"a": "serving", "b": "weights_restored", "b2": "serving"}
    assert await server.recover() == []


async def test_a_direct_caller_releases_one_engine_which_is_flushed_first() -> None:
    actors = Actors()
    server = actors.server(Group(["a", "b"]))
    await server.engines()
    actors.journal.clear()
    await server.release("b")
    assert actors.states == {"a": "serving", "b": "released"}
    assert actors.first("b: idle -> proved") < actors.first("b: call release")
    assert actors.calls("a") == []
    await server.recover(["b"])
    assert actors.states["b"] == "weights_restored"
    with pytest.raises(KeyError, match="no engine 'c'; there are a, b"):
        await server.release("c")


# weights


async def test_engines_that_keep_their_weights_need_no_push() -> None:
    actors = Actors(tags=(KEPT_WEIGHTS, KV_CACHE))
    server = actors.server(Group(["a"]), update_weights=False)
    await server.offload()
    await server.onload()
    assert actors.states == {"a": "serving"}
    assert not any("load" in call or "push" in call for call in actors.calls())


async def test_engines_that_discard_them_are_not_released_to_come_back_with_what_they_kept() -> None:
    actors = Actors()
    server = actors.server(Group(["a"]), update_weights=False)
    with pytest.raises(FleetError, match="refused before anything was sent") as refused:
        await server.offload()
    assert "weights_recoverable" in str(refused.value)
    assert actors.calls() == []


async def test_kv_alone_goes_and_comes_back_while_the_weights_stay() -> None:
    actors = Actors()
    server = actors.server(Group(["a"]))
    await server.offload(["kv_cache"], weights=Kept())
    actors.journal.clear()
    await server.onload_kv()
    assert actors.calls()[0] == "a: restore(kv_cache)"
    assert actors.states == {"a": "serving"}


@pytest.mark.parametrize("tags", [[], ["weights", "lora"]])
async def test_tags_that_no_server_has_are_refused(tags: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="one or more of cuda_graph, kv_cache, weights, or None"):
        await Actors().server(Group(["a"])).onload(tags)


# what slime does in the wrong order


async def test_kv_before_weights_is_refused_and_nothing_is_sent() -> None:
    actors = Actors()
    server = actors.server(Group(["a", "b"]))
    await server.offload()
    actors.journal.clear()
    with pytest.raises(FleetError, match=r"its weights come first: onload_weights\(\)"):
        await server.onload_kv()
    assert actors.calls() == []
    assert actors.states == dict.fromkeys("ab", "released")


async def test_kv_before_the_push_is_refused_and_nothing_is_sent() -> None:
    """There, the engine serves whatever is in that memory."""
    actors = Actors()
    server = actors.server(Group(["a"]))
    await server.offload()
    await server.onload_weights()
    actors.journal.clear()
    with pytest.raises(FleetError, match=r"push them first: with server\.updating_weights") as refused:
        await server.onload_kv()
    assert isinstance(refused.value.exceptions[0], GuardRefused)
    assert actors.calls() == []
    assert actors.states == {"a": "weights_restored"}


async def test_weights_that_are_mapped_are_not_restored_again() -> None:
    """There, that ends the process."""
    actors = Actors()
    server = actors.server(Group(["a"]))
    assert await server.onload_weights() == []
    await server.offload()
    assert len(await server.onload_weights()) == 1
    assert await server.onload_weights() == []
    assert actors.states == {"a": "weights_restored"}


async def test_the_mode_is_sent_and_never_left_to_a_default() -> None:
    actors = Actors()
    await actors.server(Group(["a"]), mode="keep").offload()
    assert actors.calls()[0] == "a: pause(keep)"


# bad input


async def test_a_group_that_is_none_is_refused_by_what_it_lacks() -> None:
    wrong: Any = SimpleNamespace(engines=[])
    with pytest.raises(ConfigurationError, match=r"server group 1 .* has no needs_offload"):
        SlotMembers([Group([]), wrong], Actors().engine_of)


async def test_what_makes_no_engines_is_refused() -> None:
    wrong: Any = "an engine"
    with pytest.raises(ConfigurationError, match="engine_of must be a function"):
        SlotMembers([], wrong)
    server = AsyncRolloutServer(SlotMembers([Group(["a"])], lambda handle: wrong))
    with pytest.raises(ConfigurationError, match=r"engine_of\('a'\) must return a lifecycle.Engine, got str"):
        await server.offload()


async def test_one_engine_in_two_slots_is_refused_before_anything_is_sent() -> None:
    class Alias(str):
        """Another handle of the same engine."""

    actors = Actors()
    server = actors.server(Group(["a", Alias("a")]))
    with pytest.raises(ConfigurationError, match=r"a .* and a .* are one engine"):
        await server.offload()
    assert actors.calls() == []


async def test_one_engine_in_a_slot_that_is_filled_later_is_refused_too() -> None:
    class Alias(str):
        """Another handle of the same engine."""

    actors, group = Actors(), Group(["a", None])
    server = actors.server(group)
    await server.offload()
    actors.journal.clear()
    group.engines[1] = Alias("a")
    with pytest.raises(ConfigurationError, match=r"a .* and a .* are one engine"):
        await server.onload_weights()
    group.engines[1] = None
    assert len(await server.onload_weights()) == 1, "the one that was there is driven on"


async def test_nobody_answers_for_it() -> None:
    with pytest.raises(ConfigurationError, match="by= must name who answers for it"):
        Actors().server(Group([]), by=" ")


# over a fleet


async def test_over_a_fleet_which_stays_its_owners() -> None:
    actors = Actors()
    async with Fleet([actors.engine_of("a"), actors.engine_of("b")]) as fleet:
        async with AsyncRolloutServer(FleetMembers(fleet)) as server:
            await cycle(server)
            assert [engine.name for engine in await server.engines()] == ["a", "b"]
        assert "aclose" not in "".join(map(str, actors.journal))
        await fleet.offload(weights=Kept(), tags=["kv_cache"])
    assert actors.states == dict.fromkeys("ab", "released")


async def test_a_fleet_of_which_nobody_offloads_has_nothing_to_do() -> None:
    actors = Actors()
    engine = actors.engine_of("a")
    engine.offloads = False
    async with Fleet([engine]) as fleet:
        server = AsyncRolloutServer(FleetMembers(fleet))
        assert [await server.engines(), await server.offload(), await server.onload()] == [[], [], []]
        async with server.updating_weights("v1") as engines:
            assert engines == []
    assert actors.calls() == []


async def test_an_engine_that_dies_in_the_window_is_said_once_and_then_passed_over() -> None:
    actors = Actors()
    server = actors.server(Group(["a", "b"]))
    await server.offload()
    actors.made["b"].adapter.script("restore", DIE_AFTER)
    with pytest.raises(FleetError, match="b: restore_weights failed") as failed:
        await server.onload_weights()
    assert "nothing was resumed (a weights_restored, b gone)" in failed.value.__notes__[0]
    async with server.updating_weights("v1") as engines:
        assert [engine.name for engine in engines] == ["a"]
        await push(engines)
    await server.onload_kv()
    assert actors.states == {"a": "serving", "b": "gone"}
