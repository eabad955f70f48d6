"""Messages of engines that failed, are gone or silent, that others have, and of fleets."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from messages import POLICY, Met, case, engine_in, met, new_engine
from rig import V1, sent

from lifecycle import Engine, Fleet, FromDisk, Grade, Refuted, State
from lifecycle.core.errors import LifecycleError
from lifecycle.testing import (
    HANG_LATE,
    KEPT_WEIGHTS,
    KV_CACHE,
    LATE,
    LOST,
    REJECTED,
    REJECTED_AFTER,
    WEIGHTS,
)

# failed, gone, silent


@case
async def bytes_that_decide_nothing() -> Met:
    small = (replace(KEPT_WEIGHTS, expected_bytes=20 << 20), replace(KV_CACHE, expected_bytes=20 << 20))
    engine = new_engine("e", *small)
    engine.adapter.engine.admission = "closed"
    await engine.connect()
    return await met(engine, engine.resume())


@case
async def bytes_that_decide_nothing_of_one_that_is_released() -> Met:
    small = (replace(WEIGHTS, expected_bytes=20 << 20), replace(KV_CACHE, expected_bytes=20 << 20))
    engine = new_engine("e", *small)
    engine.adapter.engine.admission = "closed"
    for tag in ("weights", "kv_cache"):
        engine.adapter.engine.apply("release", {"tags": [tag]})
    await engine.connect()
    return Met(Fleet([engine], policy=POLICY), engine, str(await engine.recover()))


@case
async def one_that_is_silent() -> Met:
    engine = await engine_in(State.DRAINED)
    engine.adapter.engine.reachable = False
    found = await met(engine, engine.release(weights=V1, deadline_s=1.0))
    return Met(found.fleet, engine, found.message, lambda: setattr(engine.adapter.engine, "reachable", True))


@case
async def one_whose_call_never_ends() -> Met:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("release", LATE)
    engine.adapter.always("barrier", LOST)
    heal = lambda: engine.adapter.always("barrier", None)  # noqa: E731
    return await met(engine, engine.release(weights=V1, deadline_s=1.0), heal=heal)


@case
async def one_that_cannot_be_closed() -> Met:
    engine = await engine_in(State.DRAINED)
    engine.adapter.always("answers", Refuted(reason="it generated nothing"))
    engine.adapter.always("pause", REJECTED)
    return await met(engine, engine.resume(deadline_s=1.0), heal=engine.adapter.as_modelled)


@case
async def one_that_never_generates() -> Met:
    engine = await engine_in(State.DRAINED)
    engine.adapter.always("answers", Refuted(reason="it generated nothing"))
    return await met(engine, engine.resume(deadline_s=1.0))


@case
async def one_whose_weights_never_come_back() -> Met:
    engine = await engine_in(State.RELEASED)
    engine.adapter.always("restore", REJECTED_AFTER)
    return await met(engine, engine.restore_weights(deadline_s=1.0))


@case
async def a_cache_that_is_too_small_to_be_seen() -> Met:
    engine = await engine_in(State.RELEASED, WEIGHTS, replace(KV_CACHE, expected_bytes=20 << 20))
    accepting = replace(POLICY, accept={"kv_mapped": Grade.ACKNOWLEDGED})
    fleet = Fleet([engine], policy=POLICY)
    return await met(engine, fleet.onload(), fleet=fleet, heal=lambda: setattr(engine._session, "policy", accepting))


@case
async def one_that_frees_nothing() -> Met:
    engine = await engine_in(State.DRAINED)
    engine.adapter.engine.frees = False
    return await met(engine, engine.release(weights=V1))


@case
async def one_that_keeps_too_much() -> Met:
    engine = await engine_in(State.DRAINED)
    engine.adapter.engine.leak_bytes = 4 << 30
    return await met(engine, engine.release(weights=V1))


@case
async def an_offload_of_what_is_released_without_proof() -> Met:
    engine = await engine_in(State.DRAINED)
    engine.adapter.engine.leak_bytes = 4 << 30
    with pytest.raises(LifecycleError):
        await engine.release(weights=V1)
    fleet = Fleet([engine], policy=POLICY)
    return await met(engine, fleet.offload(), fleet=fleet)


@case
async def one_that_is_gone() -> Met:
    engine = await engine_in(State.RELEASED)
    engine.adapter.engine.die("killed")
    return await met(engine, engine.restore_weights())


@case
async def a_move_of_one_that_is_gone() -> Met:
    engine = await engine_in(State.SERVING)
    engine.adapter.engine.die("killed")
    await engine.verify()
    fleet = Fleet([engine], policy=POLICY)
    return await met(engine, fleet.onload(), fleet=fleet)


@case
async def one_that_was_started_anew_behind_our_back() -> Met:
    engine = await engine_in(State.RELEASED)
    engine.adapter.engine.restart()
    return await met(engine, engine.restore_weights())


@case
async def one_that_was_started_anew_with_the_label_that_is_wanted() -> Met:
    engine = await engine_in(State.DRAINED, caps={"launch_source": FromDisk("/models/launch", "v0")})
    engine.adapter.engine.restart()
    return await met(engine, engine.resume())


@case
async def one_that_was_cancelled_in_its_release() -> Met:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("release", HANG_LATE)
    task = asyncio.create_task(engine.release(weights=V1))
    for _ in range(100):
        await asyncio.sleep(0)
    assert sent(engine)
    task.cancel()
    await asyncio.wait({task})
    with pytest.raises(LifecycleError) as raised:
        engine.override_state(State.DRAINED, by="me", reason="I saw it")
    return Met(Fleet([engine], policy=POLICY), engine, str(raised.value))


@case
async def an_override_of_one_that_is_not_failed() -> Met:
    engine = await engine_in(State.DRAINED)
    with pytest.raises(LifecycleError) as raised:
        engine.override_state(State.SERVING, by="me", reason="I saw it")
    return Met(Fleet([engine], policy=POLICY), engine, str(raised.value))


# busy, and several


@case
async def one_that_another_command_has() -> Met:
    engine = await engine_in(State.PAUSED)
    engine.adapter.engine.stubborn = -1
    drain = asyncio.create_task(engine.drain())
    await asyncio.sleep(0)
    found = await met(engine, engine.resume(), heal=lambda: setattr(engine.adapter.engine, "stubborn", 0))
    found.under_way = drain
    return found


@case
async def one_that_another_window_has() -> Met:
    engine = await engine_in(State.SERVING)
    fleet = Fleet([engine], policy=POLICY)
    window = fleet.offloaded(weights=V1)
    await window.__aenter__()

    async def second() -> None:
        async with fleet.offloaded(weights=V1):
            raise AssertionError("two windows share its memory")

    found = await met(engine, second(), fleet=fleet)
    await window.__aexit__(None, None, None)
    return found


@case
async def a_push_outside_an_update() -> Met:
    engine = await engine_in(State.SERVING)
    return await met(engine, engine.push("tensor"))


@case
async def an_engine_that_is_not_connected() -> Met:
    engine = new_engine("e")
    return await met(engine, engine.pause())


async def _two() -> tuple[Fleet, Engine, Engine]:
    one, two = new_engine("one"), new_engine("two")
    fleet = Fleet([one, two], policy=POLICY)
    await fleet.__aenter__()
    return fleet, one, two


@case
async def a_fleet_of_which_one_failed_in_its_release() -> Met:
    fleet, one, _ = await _two()
    one.adapter.script("release", REJECTED_AFTER)
    return await met(one, fleet.offload(weights=V1), fleet=fleet)


@case
async def a_fleet_that_is_not_all_drained() -> Met:
    fleet, one, two = await _two()
    await two.pause()
    await two.drain()
    return await met(one, fleet.release(weights=V1), fleet=fleet)


@case
async def a_fleet_of_which_one_fell_silent_in_its_onload() -> Met:
    fleet, one, _ = await _two()
    await fleet.offload(weights=V1)
    one.adapter.engine.reachable = False
    heal = lambda: setattr(one.adapter.engine, "reachable", True)  # noqa: E731
    return await met(one, fleet.onload(deadline_s=1.0), fleet=fleet, heal=heal)
