"""Whole rings of engines in real actors, each with a server of real memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lifecycle.adapters.ray import MILES, SLIME, Methods, RayActors
from ray_actors import MilesEngine, SlimeEngine, calls

from lifecycle import ConfigurationError, Engine, Fleet, FromDisk, GuardRefused, Policy, Proved, State

pytestmark = pytest.mark.slow

POLICY = Policy(residual_threshold_gib=0.2, settle_s=2.0, poll_s=0.02)


async def engines_of(ray: Any, actors: list[Any], methods: Methods) -> tuple[list[Engine], list[dict[str, Any]]]:
    """An engine for each of these actors, and what it is told of each."""
    told = await asyncio.gather(*(each.about.remote() for each in actors))
    engines = [
        Engine(RayActors(actor, methods, options={"abort": "retract"}), name=f"e{number}", policy=POLICY, lease=None)
        for number, actor in enumerate(actors)
    ]
    return engines, told


@pytest.mark.parametrize(
    ("kind", "methods", "modes"),
    [(SlimeEngine, SLIME, {"abort"}), (MilesEngine, MILES, {"abort", "keep", "freeze"})],
    ids=["sync", "async"],
)
async def test_a_ring(
    ray: Any, actor_of: Callable[..., Any], tmp_path: Path, kind: type, methods: Methods, modes: set[str]
) -> None:
    actors = [actor_of(kind, str(tmp_path), number) for number in range(2)]
    engines, told = await engines_of(ray, actors, methods)
    async with Fleet(engines, policy=POLICY) as fleet:
        assert [each.state for each in fleet] == [State.SERVING] * 2, "read over HTTP, of an engine never seen before"
        assert set(fleet["e0"].capabilities.pause) == modes
        assert fleet["e0"].facts.boot is not None
        assert str(told[0]["server"]) in fleet["e0"].facts.boot, "the server's process is what is measured"
        for _ in range(2):
            released = await fleet.offload(weights=FromDisk(told[0]["weights"], "v1"))
            assert all(isinstance(each.verdicts["memory_returned"], Proved) for each in released)
            assert all(each.memory_is_free for each in fleet)
            await fleet.onload()
            assert [each.state for each in fleet] == [State.SERVING] * 2
            assert [each.facts.contents["weights"].version for each in fleet] == ["v1"] * 2


async def test_orders_of_slime(ray: Any, actor_of: Callable[..., Any], tmp_path: Path) -> None:
    """As recorded in the actors: each phase was acknowledged by all before any is asked for the next."""
    actors = [actor_of(SlimeEngine, str(tmp_path), number) for number in range(3)]
    engines, told = await engines_of(ray, actors, SLIME)
    names = ["e0", "e1", "e2"]
    async with Fleet(engines, policy=POLICY) as fleet:
        released = await fleet.offload(weights=FromDisk(told[0]["weights"], "v1"))
        down = calls(tmp_path / "calls")
        restored = await fleet.onload()
    up = calls(tmp_path / "calls")[len(down) :]
    assert [each.engine for each in released] == [each.engine for each in restored] == names, "in the group's order"
    assert_all_before_any(down, "pause_generation", "flush_cache")
    assert_all_before_any(down, "flush_cache", "release_memory_occupation")
    assert [sorted(each["tags"]) for each in up if each["call"] == "resume_memory_occupation"] == [
        *[["weights"]] * 3,
        *[["cuda_graph", "kv_cache"]] * 3,
    ]
    assert_all_before_any(up, "resume_memory_occupation", "continue_generation")
    assert "continue_generation" not in {each["call"] for each in down}


def assert_all_before_any(recorded: list[dict[str, Any]], first: str, then: str) -> None:
    """Every call of the one method had ended, in every actor, before any of the other began."""
    ended = [each for each in recorded if each["call"] == first]
    began = [each for each in recorded if each["call"] == then]
    assert {each["actor"] for each in ended} == {each["actor"] for each in began} == {0, 1, 2}
    assert max(each["end"] for each in ended) <= min(each["begin"] for each in began)


async def test_one_engine_is_flushed_before_it_is_released_alone(
    ray: Any, actor_of: Callable[..., Any], tmp_path: Path
) -> None:
    """As slime's recovery of one engine does; and without tags a release is of all of them."""
    engines, told = await engines_of(ray, [actor_of(SlimeEngine, str(tmp_path))], SLIME)
    engine = await engines[0].connect()
    await engine.pause()
    await engine.drain()
    with pytest.raises(GuardRefused, match="it cannot release kv_cache together; it can release: cuda_graph, kv_cache"):
        await engine.release(["kv_cache"])
    assert not calls(tmp_path / "calls", "release_memory_occupation")
    await engine.release(weights=FromDisk(told[0]["weights"], "v1"))
    assert engine.memory_is_free
    await engine.restore_weights()
    assert engine.state is State.WEIGHTS_RESTORED, "where a recovered engine waits for its weights"
    await engine.aclose()


async def test_capabilities_come_from_the_signatures(ray: Any, actor_of: Callable[..., Any], tmp_path: Path) -> None:
    engines, told = await engines_of(ray, [actor_of(MilesEngine, str(tmp_path))], MILES)
    engine = await engines[0].connect()
    await engine.pause("keep")
    await engine.drain()
    await engine.release(["kv_cache"], weights=FromDisk(told[0]["weights"], "v1"))
    assert [each["mode"] for each in calls(tmp_path / "calls", "pause_generation")] == ["retract"]
    assert [each["tags"] for each in calls(tmp_path / "calls", "release_memory_occupation")] == [["kv_cache"]]
    assert engine.memory_is_free
    await engine.aclose()


async def test_a_push_by_the_actors_method_is_given_its_version(
    ray: Any, actor_of: Callable[..., Any], tmp_path: Path
) -> None:
    adapter = RayActors(actor_of(SlimeEngine, str(tmp_path)), SLIME)
    call = adapter.push_call("tensor", {"serialized_named_tensors": ["a", "b"]}, "v7")
    reply = await adapter.send(call, deadline_s=30)
    assert (reply.outcome, reply.value) == ("done", 2)
    own = adapter.push_call("tensor", {"serialized_named_tensors": [], "weight_version": "v8"}, "v7")
    await adapter.send(own, deadline_s=30)
    assert [each["weight_version"] for each in calls(tmp_path / "calls")] == ["v7", "v8"]
    assert (
        "weight_version"
        not in RayActors(actor_of(MilesEngine, str(tmp_path), starts=False), MILES).push_call("tensor", {}, "v7").args
    )


async def test_ranks_of_other_nodes_are_measured_and_not_called(
    ray: Any, actor_of: Callable[..., Any], tmp_path: Path
) -> None:
    """slime's pause of another node posts to a port at which nothing listens."""
    ranks = [actor_of(SlimeEngine, str(tmp_path), 0), actor_of(SlimeEngine, str(tmp_path), 1, starts=False)]
    other = await ranks[1].about.remote()
    engine = Engine(RayActors(ranks, SLIME), name="e", policy=replace(POLICY, residual_threshold_gib=2.0), lease=None)
    await engine.connect()
    pids = {each.pid for each in await engine.adapter.processes()}
    assert other["pid"] in pids
    assert len(pids) == 2, "and the server of node 0, not its actor beside it"
    await engine.pause()
    assert {each["actor"] for each in calls(tmp_path / "calls")} == {0}
    assert engine.state is State.PAUSED
    await engine.aclose()


async def test_a_pause_that_the_server_does_not_have_is_left_out(
    ray: Any, actor_of: Callable[..., Any], tmp_path: Path
) -> None:
    """Before 0.5.21 a release with retracted requests ends the server, whatever the actor's pause takes."""
    actor = actor_of(MilesEngine, str(tmp_path), dialect="sglang:0.5.20")
    engine = await Engine(RayActors(actor, MILES), name="e", policy=POLICY, lease=None).connect()
    assert set(engine.capabilities.pause) == {"abort", "freeze"}
    assert "its server has no pause by keep" in engine.capabilities.notes
    await engine.aclose()
    only_keep = replace(MILES, pause={"keep": MILES.pause["keep"]})
    with pytest.raises(ConfigurationError, match=r"none of its pauses \(keep\) is one of SGLang 0.5.20, which has"):
        await RayActors(actor, only_keep).connect(deadline_s=20)
