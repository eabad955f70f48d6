"""Messages of guards that refuse."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

from messages import POLICY, Met, case, engine_in, met, new_engine
from rig import V1, V2, believing, put

from lifecycle import Engine, Fleet, FromDisk, Kept, Pushed, State
from lifecycle.core.commands import (
    UpdateWeights,
)
from lifecycle.testing import (
    KEPT_WEIGHTS,
    KV_CACHE,
    Act,
    ScriptedAdapter,
    ScriptedRouter,
)

# guards


@case
async def a_pause_mode_that_it_does_not_have() -> Met:
    modes = {name: each for name, each in ScriptedAdapter("x").capabilities.pause.items() if name != "keep"}
    engine = await engine_in(State.SERVING, caps={"pause": modes})
    return await met(engine, engine.pause("keep"))


@case
async def a_pause_mode_that_needs_a_router() -> Met:
    engine = await engine_in(State.SERVING)
    return await met(engine, engine.pause("wait"))


@case
async def an_offload_by_a_mode_that_needs_a_router() -> Met:
    engine = await engine_in(State.SERVING)
    fleet = Fleet([engine], policy=POLICY)
    return await met(engine, fleet.offload(weights=V1, mode="wait"), fleet=fleet)


@case
async def a_router_that_was_not_closed() -> Met:
    engine = await engine_in(State.SERVING, has_router=True)
    fleet = Fleet([engine], router=ScriptedRouter(), policy=POLICY)
    return await met(engine, engine.pause(), fleet=fleet)


@case
async def an_abort_of_an_engine_that_is_frozen() -> Met:
    engine = await engine_in(State.SERVING)
    await engine.pause("freeze")
    return await met(engine, engine.pause("abort"))


@case
async def a_pause_of_an_engine_that_somebody_paused() -> Met:
    engine = await engine_in(State.PAUSED)
    believing(engine, paused_by=None, cache_fresh=None)
    return await met(engine, engine.pause("abort"))


@case
async def an_onload_of_an_engine_that_somebody_paused() -> Met:
    engine = await engine_in(State.PAUSED)
    believing(engine, paused_by=None, cache_fresh=None)
    return await met(engine, engine.resume())


@case
async def a_drain_of_an_engine_that_is_frozen() -> Met:
    engine = await engine_in(State.SERVING)
    await engine.pause("freeze")
    return await met(engine, engine.drain())


@case
async def a_release_while_requests_run() -> Met:
    engine = await engine_in(State.DRAINED)
    engine.adapter.engine.stubborn = 3
    return await met(engine, engine.release(weights=V1))


@case
async def a_drain_that_does_not_end() -> Met:
    engine = await engine_in(State.PAUSED)
    engine.adapter.engine.stubborn = -1
    return await met(engine, engine.drain(deadline_s=1.0), heal=lambda: setattr(engine.adapter.engine, "stubborn", 0))


@case
async def a_release_without_memory_saver() -> Met:
    engine = await engine_in(State.DRAINED, caps={"memory_saver": False})
    heal = lambda: engine.capabilities_changed(replace(engine.capabilities, memory_saver=True))  # noqa: E731
    return await met(engine, engine.release(weights=V1), heal=heal)


@case
async def a_release_of_a_tag_that_it_does_not_have() -> Met:
    engine = await engine_in(State.DRAINED)
    return await met(engine, engine.release(["lora"], weights=V1))


@case
async def a_release_of_tags_that_do_not_go_together() -> Met:
    engine = await engine_in(State.DRAINED, caps={"releasable": frozenset({frozenset({"weights", "kv_cache"})})})
    return await met(engine, engine.release(["kv_cache"], weights=V1))


@case
async def a_release_without_a_source() -> Met:
    engine = await engine_in(State.DRAINED)
    return await met(engine, engine.release())


@case
async def a_release_without_a_source_of_an_engine_that_tells_its_launch() -> Met:
    engine = await engine_in(State.DRAINED, caps={"launch_source": FromDisk("/models/launch", "v0")})
    return await met(engine, engine.release())


@case
async def a_release_with_weights_that_are_not_kept() -> Met:
    engine = await engine_in(State.DRAINED)
    return await met(engine, engine.release(weights=Kept()))


@case
async def an_offload_without_a_source() -> Met:
    engine = await engine_in(State.SERVING)
    fleet = Fleet([engine], policy=POLICY)
    return await met(engine, fleet.offload(), fleet=fleet)


@case
async def a_release_of_an_engine_that_loads_by_push_alone() -> Met:
    engine = await engine_in(State.DRAINED, caps={"update": frozenset({"push"})})
    return await met(engine, engine.release(weights=V1))


@case
async def no_room_on_the_host() -> Met:
    engine = await engine_in(State.DRAINED, KEPT_WEIGHTS, KV_CACHE)
    return await _refused_by(engine, "host_has_room", engine.release(weights=Kept()))


@case
async def no_room_on_the_device() -> Met:
    engine = await engine_in(State.RELEASED)
    return await _refused_by(engine, "device_has_room", engine.restore_weights())


@case
async def cotenants_over_their_budget() -> Met:
    engine = await engine_in(State.WEIGHTS_RESTORED)
    await engine.update_weights(V1)
    return await _refused_by(engine, "cotenants_within_budget", engine.restore_kv())


@case
async def a_hook_mode_that_is_not_safe() -> Met:
    engine = await engine_in(State.DRAINED)
    return await _refused_by(engine, "hook_mode_safe", engine.release(weights=V1))


async def _refused_by(engine: Engine, guard: str, doing: Awaitable[Any]) -> Met:
    """A guard that judges what lies outside the engine refuses, until a person changes that."""
    from lifecycle.rules import guards

    asked = getattr(guards, guard)
    check = asked.check
    object.__setattr__(asked, "check", lambda context: f"a test says no; {guard} can be changed")
    try:
        return await met(engine, doing)
    finally:
        object.__setattr__(asked, "check", check)


@case
async def an_update_to_what_is_there() -> Met:
    engine = await engine_in(State.PAUSED)
    await engine.drain()
    await engine.update_weights(V1)
    return await met(engine, engine.update_weights(V1))


@case
async def an_update_by_what_was_kept() -> Met:
    engine = await engine_in(State.DRAINED)
    return await met(engine, engine.execute(UpdateWeights(Kept())))  # type: ignore[arg-type]


@case
async def an_update_from_an_empty_path() -> Met:
    engine = await engine_in(State.DRAINED)
    return await met(engine, engine.update_weights(FromDisk("", "v1")))


@case
async def an_update_by_a_push_without_callback() -> Met:
    engine = await engine_in(State.DRAINED)
    return await met(engine, engine.update_weights(Pushed(None, "v1")))


@case
async def an_update_while_it_is_paused_by_an_abort() -> Met:
    engine = await engine_in(State.PAUSED)
    return await met(engine, engine.update_weights(V1))


@case
async def a_restore_of_the_cache_with_garbage_weights() -> Met:
    engine = await engine_in(State.WEIGHTS_RESTORED)
    return await met(engine, engine.restore_kv())


@case
async def a_restore_of_the_cache_where_no_source_is_known() -> Met:
    engine = await engine_in(State.WEIGHTS_RESTORED)
    put(engine, desired=replace(engine.desired, source=None, version=None))
    return await met(engine, engine.restore_kv())


@case
async def a_resume_with_other_weights_than_are_wanted() -> Met:
    engine = await engine_in(State.DRAINED)
    engine.set_desired(V2)
    return await met(engine, engine.resume())


@case
async def a_resume_from_paused_with_other_weights_than_are_wanted() -> Met:
    engine = await engine_in(State.PAUSED)
    engine.set_desired(V2)
    return await met(engine, engine.resume())


@case
async def a_resume_with_kv_restored_and_weights_that_are_unknown() -> Met:
    engine = await engine_in(State.KV_RESTORED)
    believing(engine, contents={"weights": None})
    return await met(engine, engine.resume())


@case
async def a_resume_with_memory_that_is_not_known_to_be_mapped() -> Met:
    engine = await engine_in(State.DRAINED)
    believing(engine, mapped={"weights": None})
    return await met(engine, engine.resume())


@case
async def a_resume_with_a_stale_cache() -> Met:
    engine = await engine_in(State.DRAINED)
    believing(engine, cache_fresh=False)
    return await met(engine, engine.resume())


@case
async def a_resume_from_paused_with_a_stale_cache() -> Met:
    engine = await engine_in(State.PAUSED)
    believing(engine, cache_fresh=False)
    return await met(engine, engine.resume())


@case
async def a_resume_with_a_stale_cache_once_all_is_restored() -> Met:
    engine = await engine_in(State.KV_RESTORED)
    believing(engine, cache_fresh=None)
    return await met(engine, engine.resume())


@case
async def kept_weights_that_came_back_changed() -> Met:
    engine = await engine_in(State.DRAINED, KEPT_WEIGHTS, KV_CACHE)
    engine.adapter.engine.checksum = "before"
    await engine.release(weights=Kept())
    await engine.restore_weights()
    engine.adapter.engine.checksum = "after"
    engine.adapter.script("load", Act(then=lambda model: setattr(model, "checksum", "loaded")))
    return await met(engine, engine.restore_kv())


@case
async def kept_weights_that_came_back_changed_to_an_onload() -> Met:
    engine = await engine_in(State.DRAINED, KEPT_WEIGHTS, KV_CACHE)
    engine.adapter.engine.checksum = "before"
    await engine.release(["weights"], weights=Kept())
    engine.adapter.engine.checksum = "after"
    engine.adapter.script("load", Act(then=lambda model: setattr(model, "checksum", "loaded")))
    fleet = Fleet([engine], policy=POLICY)
    return await met(engine, fleet.onload(), fleet=fleet)


@case
async def a_store_that_cannot_be_written() -> Met:
    class Full:
        broken = True

        def load(self, url: str) -> None:
            return None

        def save(self, url: str, record: object) -> None:
            if self.broken:
                raise OSError("no space left on device")

    store = Full()
    engine = new_engine("e")
    engine._session.store = store
    await engine.connect()
    return await met(engine, engine.pause(), heal=lambda: setattr(store, "broken", False))


@case
async def an_onload_of_an_engine_in_quarantine() -> Met:
    engine = await engine_in(State.PAUSED)
    engine.set_quarantined("a test")
    fleet = Fleet([engine], policy=POLICY)
    return await met(engine, fleet.onload(), fleet=fleet)


@case
async def an_offload_of_an_engine_that_is_gone_and_in_quarantine() -> Met:
    engine = await engine_in(State.SERVING)
    engine.set_quarantined("a test")
    engine.adapter.engine.die("killed")
    await engine.recover()
    fleet = Fleet([engine], policy=POLICY)
    return await met(engine, fleet.offload(weights=V1), fleet=fleet)
