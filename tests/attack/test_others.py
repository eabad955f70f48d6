"""Somebody else acted: what that may have changed is unknown, and decided by bytes or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from another_driver import AnotherDriver, alive, url

from lifecycle import Engine, Fleet, FromDisk, Policy, State
from lifecycle.core.deadline import Deadline
from lifecycle.engine.reconcile import reconcile

pytestmark = pytest.mark.slow

Acts = Callable[[AnotherDriver, FromDisk], None]


def pauses(other: AnotherDriver, step: FromDisk) -> None:
    """Nothing but a pause."""
    other.pause()


def pauses_and_releases(other: AnotherDriver, step: FromDisk) -> None:
    """The beginning of a window."""
    other.pause()
    other.release("kv_cache", "weights")


def releases_the_weights(other: AnotherDriver, step: FromDisk) -> None:
    """Half of one."""
    other.pause()
    other.release("weights")


def releases_the_kv_cache(other: AnotherDriver, step: FromDisk) -> None:
    """The other half."""
    other.pause()
    other.release("kv_cache")


def goes_round_and_stays_closed(other: AnotherDriver, step: FromDisk) -> None:
    """A window with other weights, and not opened yet."""
    pauses_and_releases(other, step)
    other.restore("weights", "kv_cache")
    other.load(replace(step, version="default"))  # the label that the engine was launched with


#: What another driver does to an engine that serves; which state and mapping are found.
SERVING: dict[str, tuple[Acts, State, dict[str, bool]]] = {
    "a pause": (pauses, State.DRAINED, {"weights": True, "kv_cache": True}),
    "a release": (pauses_and_releases, State.RELEASED, {"weights": False, "kv_cache": False}),
    "a release of the weights": (releases_the_weights, State.RELEASED, {"weights": False, "kv_cache": True}),
    "a release of the KV cache": (
        releases_the_kv_cache,
        State.WEIGHTS_RESTORED,
        {"weights": True, "kv_cache": False},
    ),
    "a window": (goes_round_and_stays_closed, State.DRAINED, {"weights": True, "kv_cache": True}),
}


async def comes_home(fleet: Fleet, engine: Engine, step: FromDisk) -> None:
    """It serves these weights, by verbs alone."""
    engine.set_desired(step)
    await fleet.onload()
    assert engine.state is State.SERVING
    assert {str(held) for held in engine.facts.contents.values()} == {f"loaded({step.version})"}


@pytest.mark.parametrize("what", SERVING)
async def test_who_closed_it_may_have_released_it(start, step_1, policy: Policy, what: str) -> None:
    acts, state, mapped = SERVING[what]
    process = start()
    async with Fleet.connect([url(process)], policy=policy) as fleet:
        (engine,) = fleet
        acts(AnotherDriver(process), step_1)
        assert await engine.verify() is state
        assert engine.facts.mapped == mapped
        assert engine.facts.contents == {"weights": None}
        assert not engine.memory_is_free, "nobody proved what was released"
        await comes_home(fleet, engine, step_1)
    assert alive(process)
    AnotherDriver(process).generate()


async def test_who_opened_it_while_released_left_it_released(start, step_1, policy: Policy) -> None:
    process = start()
    async with Fleet.connect([url(process)], policy=policy) as fleet:
        (engine,) = fleet
        await fleet.offload(weights=step_1)
        AnotherDriver(process).resume()
        assert await engine.verify() is State.RELEASED, "it was closed again"
        assert engine.facts.contents == {"weights": None}
        assert not engine.memory_is_free
        await fleet.onload()
        assert engine.state is State.SERVING
    assert AnotherDriver(process).generate()


async def test_tags_of_one_size_are_not_told_apart_and_the_reason_says_so(start, step_1, policy: Policy) -> None:
    process = start(weights_mib=96, kv_mib=96)
    async with Fleet.connect([url(process)], policy=policy) as fleet:
        (engine,) = fleet
        other = AnotherDriver(process)
        other.pause()
        other.release("weights")
        assert await engine.verify() is State.FAILED
        found = await reconcile(engine._session, Deadline(10.0))
        assert found.state is State.FAILED
        assert re.match(
            r"released or weights_restored: whether kv_cache, weights is mapped is not known: 9\d MiB are "
            r"missing .*, which fits kv_cache released or weights released .*; what would decide: ",
            found.reason,
        ), found.reason
        assert engine.facts.mapped == {"weights": None, "kv_cache": None}
        assert alive(process)
