"""What an engine should serve after a refused update or release: what it served, where nothing was touched."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from rig import V1, V2, engine_in

from lifecycle import Engine, GuardRefused, Kept, OperationFailed, Rejected, State
from lifecycle.core.calls import Call
from lifecycle.testing import HANG, KEPT_WEIGHTS, KV_CACHE, REJECTED


def checking_first(engine: Engine, call: str) -> Engine:
    """The engine looks at what this call wants before it touches anything: its refusal says that it did not."""
    plan = engine.adapter.plan

    def checked(command, facts):
        calls = plan(command, facts)
        return tuple(replace(each, refusal_is_untouched=each.name == call) for each in calls)

    engine.adapter.plan = checked  # type: ignore[method-assign]
    return engine


async def serves(engine: Engine, version: str | None) -> bool:
    """Whether it resumes, and serves this version."""
    assert engine.weights_refusal() is None
    await engine.resume()
    held = engine.facts.contents["weights"]
    return engine.state is State.SERVING and held is not None and held.version == version


async def test_an_update_refused_before_anything_was_touched_leaves_the_weights_of_before() -> None:
    engine = checking_first(await engine_in(State.DRAINED), "load")
    await engine.update_weights(V1)
    engine.adapter.script("load", REJECTED)
    with pytest.raises(Rejected) as refused:
        await engine.update_weights(V2)
    assert refused.value.settled is State.DRAINED
    assert (engine.desired.version, engine.desired.source) == ("v1", V1)
    assert await serves(engine, "v1")
    assert engine.adapter.engine.violations == []


async def test_of_an_engine_that_was_never_updated_too() -> None:
    engine = checking_first(await engine_in(State.DRAINED), "load")
    engine.adapter.script("load", REJECTED)
    with pytest.raises(Rejected):
        await engine.update_weights(V2)
    assert await serves(engine, "v0")


async def test_an_update_refused_half_way_leaves_nothing_to_serve() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("load", REJECTED)
    with pytest.raises(Rejected):
        await engine.update_weights(V2)
    assert engine.desired.version == "v2"
    with pytest.raises(GuardRefused, match=r"Next: .*weights=FromDisk|engine.update_weights"):
        await engine.resume()


async def test_an_update_that_was_given_up_leaves_nothing_to_serve() -> None:
    engine = checking_first(await engine_in(State.DRAINED), "load")
    engine.adapter.script("load", HANG)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await engine.update_weights(V2)
    assert engine.desired.version == "v2"
    assert engine.weights_refusal() is not None


async def test_an_update_given_up_while_it_was_still_looked_at_leaves_the_weights_of_before() -> None:
    engine = await engine_in(State.DRAINED)
    plan = engine.adapter.plan
    look = Call("await_idle", repeatable=True, refusal_is_untouched=True)
    engine.adapter.plan = lambda command, facts: (look, *plan(command, facts))  # type: ignore[method-assign]
    engine.adapter.script("await_idle", HANG)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await engine.update_weights(V2)
    assert (await engine.recover()).state is State.DRAINED
    assert await serves(engine, "v0")


async def test_a_release_refused_before_anything_was_touched_promises_no_other_weights() -> None:
    engine = checking_first(await engine_in(State.DRAINED), "release")
    engine.adapter.script("release", REJECTED)
    with pytest.raises(Rejected):
        await engine.release(weights=V2)
    assert engine.state is State.DRAINED
    assert await serves(engine, "v0")


async def test_half_a_release_wants_what_was_declared() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("release", REJECTED)
    with pytest.raises(OperationFailed):
        await engine.release(weights=V2)
    assert engine.desired.version == "v2"


async def test_in_a_window_what_was_declared_is_still_wanted() -> None:
    """The fleet that it belongs to serves V2 by then: V1, which it kept, would be an old version among new ones."""
    engine = checking_first(await engine_in(State.DRAINED, KEPT_WEIGHTS, KV_CACHE), "load")
    await engine.update_weights(V1)
    await engine.release(weights=V2)
    await engine.restore_weights()
    engine.adapter.script("load", REJECTED)
    with pytest.raises(Rejected):
        await engine.update_weights(V2)
    assert "v2 is wanted" in (engine.weights_refusal() or "")
    await engine.update_weights(V2)
    await engine.restore_kv()
    assert await serves(engine, "v2")


async def test_a_window_that_keeps_serves_what_it_kept_after_a_refused_update() -> None:
    engine = checking_first(await engine_in(State.DRAINED, KEPT_WEIGHTS, KV_CACHE), "load")
    await engine.update_weights(V1)
    await engine.release(weights=Kept())
    await engine.restore_weights()
    engine.adapter.script("load", REJECTED)
    with pytest.raises(Rejected):
        await engine.update_weights(V2)
    await engine.restore_kv()
    assert await serves(engine, "v1")
