"""The driver of a node: one message for what is asked at once, and an engine that hangs keeps no other waiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lifecycle.adapters.ray import SLIME, Drivers, Methods, OnNode, RayActors, drivers_on
from lifecycle.adapters.ray.driver import NodeLost
from ray_actors import SlimeEngine, until
from test_ray_failures import PLAIN, Rank

from lifecycle import ConfigurationError, DeadlineExceeded, Engine, Fact, Fleet, Pending, Policy, State
from lifecycle.core.calls import Call
from lifecycle.core.facts import Facts
from lifecycle.core.observation import Probe

pytestmark = pytest.mark.slow

POLICY = Policy(residual_threshold_gib=0.2, settle_s=2.0, poll_s=0.02)
ENGINES = 8


async def on_node(actor: Any, drivers: Drivers, methods: Methods = PLAIN) -> OnNode:
    return OnNode(await drivers.of(actor), partial(RayActors, actor, methods))


async def test_what_is_asked_at_once_is_one_message(ray: Any, actor_of: Callable[..., Any]) -> None:
    async with await drivers_on() as drivers:
        adapters = [await on_node(actor_of(Rank, number), drivers) for number in range(ENGINES)]
        await asyncio.gather(*(each.connect(deadline_s=60) for each in adapters))
        (driver,) = drivers.by_node.values()
        before, there = driver.messages, await driver.actor.counts.remote()
        replies = await asyncio.gather(*(each.send(Call("release"), deadline_s=10) for each in adapters))
        assert [each.value for each in replies] == list(range(ENGINES)), "each has its own answer"
        assert driver.messages == before + 1
        assert await driver.actor.counts.remote() == there + 1


async def test_an_engine_that_hangs_keeps_no_other_from_answering(
    ray: Any, actor_of: Callable[..., Any], tmp_path: Path
) -> None:
    actors = [actor_of(SlimeEngine, str(tmp_path), number) for number in range(2)]
    async with await drivers_on() as drivers:
        adapters = [await on_node(each, drivers, SLIME) for each in actors]
        engines = [Engine(each, name=f"e{n}", policy=POLICY, lease=None) for n, each in enumerate(adapters)]
        await actors[0].set_fault.remote("pause_generation", "hangs")
        async with Fleet(engines, policy=POLICY) as fleet:
            begun = time.monotonic()
            hung = asyncio.ensure_future(fleet["e0"].pause(deadline_s=6.0))
            done = await fleet["e1"].pause(deadline_s=6.0)
            assert done.dest is State.PAUSED
            assert time.monotonic() - begun < 4.0
            assert not hung.done()
            seen = await adapters[0].observe(frozenset({Fact.BOOT}), deadline_s=5)
            assert seen.alive is True, "beside its busy actor"
            with pytest.raises(DeadlineExceeded):
                await hung
            (tmp_path / "go").touch()
            await fleet["e0"].recover(deadline_s=20)
            assert fleet["e0"].state in (State.PAUSED, State.DRAINED), "it was carried out after all"


async def test_a_driver_that_has_ended(ray: Any, actor_of: Callable[..., Any]) -> None:
    """Nothing is known of its engines then: none is gone, and of no call is it known that it was not made."""
    async with await drivers_on() as drivers:
        adapter = await on_node(actor_of(Rank), drivers)
        await adapter.connect(deadline_s=30)
        (driver,) = drivers.by_node.values()
        ray.kill(driver.actor)
        reply = await adapter.send(Call("release"), deadline_s=10)
        assert (reply.outcome, reply.refused) == ("lost", False)
        assert f"the driver of node {driver.node} did not answer" in reply.detail
        assert (await adapter.observe(frozenset({Fact.BOOT}), deadline_s=10)).alive is None
        assert await adapter.barrier(deadline_s=10) is False
        assert isinstance(await adapter.prove_idle(Facts(), deadline_s=10), Pending)
        assert isinstance(await adapter.answers(Probe(), deadline_s=10), Pending)
        with pytest.raises(ConfigurationError, match=r"the driver of node \w+ did not take it: ActorDiedError"):
            await adapter.connect(deadline_s=10)


async def test_a_driver_that_does_not_answer_in_time(ray: Any, actor_of: Callable[..., Any], tmp_path: Path) -> None:
    actor = actor_of(SlimeEngine, str(tmp_path), starts=False)
    async with await drivers_on() as drivers:
        driver = await drivers.of(actor)
        make = partial(RayActors, actor, SLIME)
        with pytest.raises(ConfigurationError, match=r"did not take it: no answer in 0\.0 s"):
            await driver.adopt("e", make, 0.0)
        await driver.adopt("e", make, 30.0)
        await actor.set_fault.remote("pause_generation", "hangs")
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            await driver.ask("e", "send", Call("pause_generation"), deadline_s=0.0)
        assert time.monotonic() - begun < 1.0
        (tmp_path / "go").touch()
        with pytest.raises(KeyError):
            await driver.ask("another", "barrier", deadline_s=10)
        ray.kill(driver.actor)
        await until(lambda: driver.actor._get_local_state() == 4)
        with pytest.raises(NodeLost, match="did not answer"):
            await driver.ask("e", "barrier", deadline_s=10)


async def test_an_actor_on_a_node_without_a_driver(ray: Any, actor_of: Callable[..., Any]) -> None:
    async with await drivers_on([]) as drivers:
        with pytest.raises(ConfigurationError, match=r"ray:\w+ runs on node \w+, which has no driver"):
            await drivers.of(actor_of(Rank))
