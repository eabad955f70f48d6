"""Every message names what leads on, and following it to the letter ends with an engine that serves.

A case brings a scripted engine to a message; `advice_walk` reads the advice out of its text and carries it out. Two
walks a case: one makes the call in Python, one gives the command to the command line's own parser.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import rig
from advice_text import ways_in
from advice_walk import Walk
from rig import V1, V2, believing, put, sent
from virtual_time import VirtualTime

from lifecycle import Engine, Fleet, FromDisk, Grade, Kept, Pushed, Refuted, State, Unmeasurable
from lifecycle.core.commands import (
    Command,
    Drain,
    Pause,
    Release,
    RestoreKV,
    RestoreWeights,
    Resume,
    UpdateWeights,
)
from lifecycle.core.errors import FleetError, LifecycleError
from lifecycle.rules.table import OPERATIONS, row
from lifecycle.testing import (
    DIE,
    DIE_AFTER,
    HANG,
    HANG_AFTER,
    HANG_LATE,
    KEPT_WEIGHTS,
    KV_CACHE,
    LATE,
    LIE,
    LOST,
    LOST_AFTER,
    QUICK,
    REJECTED,
    REJECTED_AFTER,
    RESTART,
    RESTART_AFTER,
    WEIGHTS,
    Act,
    ScriptedAdapter,
    ScriptedRouter,
)

#: Polls are rare on a clock that jumps: a drain would ask a hundred thousand times.
POLICY = replace(QUICK, poll_s=0.5)
BAD = FromDisk("/models/bad", "v9")
RING = [State.SERVING, State.PAUSED, State.DRAINED, State.RELEASED, State.WEIGHTS_RESTORED, State.KV_RESTORED]

engine_in, new_engine = partial(rig.engine_in, policy=POLICY), partial(rig.new_engine, policy=POLICY)

COMMAND: dict[str, Command] = {
    "pause": Pause(),
    "drain": Drain(),
    "release": Release(None, V1),
    "restore_weights": RestoreWeights(),
    "update_weights": UpdateWeights(V2),
    "restore_kv": RestoreKV(),
    "resume": Resume(),
}
ACTS = {
    "rejected": REJECTED,
    "rejected after": REJECTED_AFTER,
    "lost": LOST,
    "lost after": LOST_AFTER,
    "late": LATE,
    "hangs": HANG,
    "hangs after": HANG_AFTER,
    "hangs, late": HANG_LATE,
    "dies": DIE,
    "dies after": DIE_AFTER,
    "restarts": RESTART,
    "restarts after": RESTART_AFTER,
    "a false reply": LIE,
}


@dataclass
class Met:
    """A message that was met, and what would make its cause go away."""

    fleet: Fleet
    engine: Engine
    message: str
    heal: Callable[[], object] = lambda: None
    under_way: asyncio.Task[Any] | None = None


Case = Callable[[], Awaitable[Met]]
CASES: dict[str, Case] = {}


def case(make: Case) -> Case:
    CASES[make.__name__.replace("_", " ")] = make
    return make


async def met(engine: Engine, doing: Awaitable[Any], *, heal: Any = None, fleet: Fleet | None = None) -> Met:
    """The message with which `doing` fails."""
    fleet = fleet or Fleet([engine], policy=engine.policy)
    with pytest.raises((LifecycleError, FleetError)) as raised:
        await doing
    errors = raised.value.exceptions if isinstance(raised.value, FleetError) else [raised.value]
    mine = next(each for each in errors if getattr(each, "engine", "") == engine.name)
    return Met(fleet, engine, str(mine), heal or (lambda: None))


def given(state: State, command: Command) -> Case:
    """A command that has no row in this state."""

    async def make() -> Met:
        engine = await engine_in(state if state in RING or state is State.FAILED else State.DRAINED)
        if state is State.GONE:
            engine.adapter.engine.die("killed")
            await engine.verify()
        assert engine.state is state
        return await met(engine, engine.execute(command))

    return make


def failing(state: State, command: Command, call: str, act: Act) -> Case:
    """A command one of whose calls, or questions, is answered in this way."""

    async def make() -> Met:
        engine = await engine_in(state)
        engine.adapter.script(call, act)
        return await met(engine, engine.execute(command, deadline_s=2.0))

    return make


def _rows() -> Iterator[tuple[str, Case]]:
    for state in (*RING, State.FAILED, State.GONE):
        for command in COMMAND.values():
            if row(command.name, state) is None:
                yield f"{command} in {state}: no row", given(state, command)
    for each in OPERATIONS:
        command = COMMAND[each.command]
        calls = ScriptedAdapter("x").plan(command, _facts_in(each.source))
        for call in dict.fromkeys(call.name for call in calls):
            for what, act in ACTS.items():
                if call != "await_idle":
                    yield f"{command} in {each.source}: {call} {what}", failing(each.source, command, call, act)
    for answer in (Refuted(reason="it generated nothing"), Unmeasurable(reason="nobody knows")):
        for state in (State.PAUSED, State.DRAINED, State.KV_RESTORED):
            yield f"resume in {state}: answers {answer.word}", failing(state, Resume(), "answers", answer)  # type: ignore[arg-type]


def _facts_in(state: State) -> Any:
    async def facts() -> Any:
        return (await engine_in(state)).facts

    return asyncio.run(facts())


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


# sources


@case
async def an_onload_where_no_source_is_known() -> Met:
    engine = await engine_in(State.RELEASED)
    put(engine, desired=replace(engine.desired, source=None, version=None))
    fleet = Fleet([engine], policy=POLICY)
    found = await met(engine, fleet.onload(), fleet=fleet)
    assert engine.adapter.journal.calls(engine.name) == [], "it is refused before any call"
    assert "weights=" in found.message
    assert "--weights" in found.message
    return found


@case
async def an_onload_of_what_another_process_was_to_push() -> Met:
    engine = await engine_in(State.DRAINED)
    await engine.release(weights=Pushed(None, "v3").bind(_never))
    put(engine, desired=replace(engine.desired, source=Pushed(None, "v3")))
    fleet = Fleet([engine], policy=POLICY)
    return await met(engine, fleet.onload(), fleet=fleet)


async def _never(engines: object) -> None:
    raise RuntimeError("the trainer has no weights yet")


@case
async def an_onload_whose_trainer_fails() -> Met:
    engine = await engine_in(State.DRAINED)
    await engine.release(weights=Pushed(_never, "v3"))
    fleet = Fleet([engine], policy=POLICY)
    return await met(engine, fleet.onload(), fleet=fleet)


@case
async def an_onload_with_other_weights_of_one_that_serves() -> Met:
    engine = await engine_in(State.SERVING)
    fleet = Fleet([engine], policy=POLICY)
    return await met(engine, fleet.onload(weights=V2), fleet=fleet)


def _refuses_bad(adapter: ScriptedAdapter) -> None:
    """The engine refuses one checkpoint, every time, and loads all others."""
    perform = adapter._perform

    async def performed(call: Any, deadline_s: float) -> Any:
        if call.name == "load" and call.args["path"] == BAD.path:
            adapter.script("load", REJECTED_AFTER)
        return await perform(call, deadline_s)

    adapter._perform = performed  # type: ignore[method-assign]


async def _with_a_wrong_checkpoint(**caps: Any) -> Met:
    engine = await engine_in(State.SERVING, caps=caps)
    _refuses_bad(engine.adapter)
    fleet = Fleet([engine], policy=POLICY)
    await fleet.offload(weights=BAD)
    return await met(engine, fleet.onload(), fleet=fleet)


@case
async def a_wrong_checkpoint_in_a_fresh_process() -> Met:
    return await _with_a_wrong_checkpoint()


@case
async def a_wrong_checkpoint_in_a_process_that_tells_its_launch() -> Met:
    found = await _with_a_wrong_checkpoint(launch_source=FromDisk("/models/launch", "v0"))
    assert ways_in(found.message)[1].call == "fleet.onload(weights=FromDisk('/models/launch', 'v0'), engines=['e'])"
    return found


@case
async def a_wrong_checkpoint_that_is_recovered_first() -> Met:
    found = await _with_a_wrong_checkpoint()
    recovered = (await found.fleet.recover(engines=["e"]))["e"]
    return replace_message(found, str(recovered))


@case
async def a_label_that_is_not_that_of_the_checkpoint() -> Met:
    engine = await engine_in(State.RELEASED)
    engine.adapter.engine.false_label = "v7"
    fleet = Fleet([engine], policy=POLICY)
    found = await met(engine, fleet.onload(), fleet=fleet)
    engine.adapter.engine.false_label = None
    return found


def replace_message(found: Met, message: str) -> Met:
    return Met(found.fleet, found.engine, message, found.heal)


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


CASES |= dict(_rows())


def walked(make: Case, *, on_command_line: bool, but_for: Collection[str] = ()) -> Walk | None:
    """The walk from the message of this case; None where the fault did no harm, or such advice was followed before."""
    world = VirtualTime()
    try:
        try:
            at = world.run(make())
        except pytest.fail.Exception:
            return None
        if shape(at.message) in but_for:
            return None
        walk = Walk(world, at.fleet, at.engine, at.heal, on_command_line, message=at.message)
        walk.follow(at.message)
        return walk
    finally:
        world.close()


def shape(message: str) -> str:
    """The message's advice, without what it names."""
    return re.sub(r"'[^']*'|[a-z]+://\S+", "", message.partition("Next: ")[2])


@pytest.mark.parametrize("on_command_line", [False, True], ids=["python", "command line"])
def test_every_message_leads_to_an_engine_that_serves_or_to_a_person(
    on_command_line: bool, report: Callable[[str], None]
) -> None:
    """On the command line each advice once: that it is the same one as in Python, the walk in Python has shown."""
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    shapes: set[str] = set()
    for name, make in CASES.items():
        try:
            walk = walked(make, on_command_line=on_command_line, but_for=shapes if on_command_line else set())
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
            continue
        if walk is not None:
            shapes.add(shape(walk.message))
            ends[", then ".join(dict.fromkeys(walk.decisions))] += 1
    assert not wrong, f"{len(wrong)} of {len(CASES)}:\n" + "\n\n".join(wrong)
    form, serve = "command line" if on_command_line else "Python", ends.pop("", 0)
    report(f"advice followed in {form}: {serve + ends.total()} messages, {serve} lead to serving without a person")
    report(f"advice followed in {form}: {ends.total()} lead to a person first, and then to serving:")
    for decision, count in ends.most_common():
        report(f"    {count:4} {decision}")
    assert serve
    assert ends
