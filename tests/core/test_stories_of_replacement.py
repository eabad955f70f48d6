"""What is claimed of a process that took an engine's place, and of one that did not answer to a close."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rig import V1, engine_in, sent

from lifecycle import (
    ConfigurationError,
    Contents,
    Engine,
    Fact,
    Fleet,
    Grade,
    NotProved,
    State,
    Unmeasurable,
    Unreachable,
)
from lifecycle.core.calls import Call, Reply
from lifecycle.core.observation import Observation
from lifecycle.store.leases import Leases
from lifecycle.store.sqlite import Store
from lifecycle.testing import LIE, LOST_AFTER, QUICK, RESTART_AFTER, Act, ScriptedAdapter, ScriptedEngine


async def test_a_close_whose_answer_was_lost_is_followed_by_no_claim() -> None:
    engine = await engine_in(State.RELEASED)
    engine.adapter.engine.restart()
    engine.adapter.script("pause", LOST_AFTER)
    with pytest.raises(Unreachable, match="another process now"):
        await engine.restore_weights(deadline_s=1)
    assert engine.state is State.FAILED
    assert engine.record.uncertain.needs_barrier
    assert (await engine.recover()).state is State.DRAINED


async def test_a_call_that_a_process_in_its_place_answered_may_have_moved_its_memory() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("release", RESTART_AFTER)
    with pytest.raises(Unreachable):
        await engine.release(weights=V1, deadline_s=1)
    model = engine.adapter.engine
    assert model.unmapped, "the new process carried out the second call"
    claimed = {tag for tag, mapped in engine.facts.mapped.items() if mapped}
    assert not claimed & set(model.unmapped)


async def test_of_a_process_that_answered_a_release_in_its_place_nothing_is_mapped_where_no_bytes_say_so() -> None:
    engine = await engine_in(State.DRAINED)

    def answers(model: ScriptedEngine) -> None:
        model.restart()
        model.apply("release", {"tags": ["kv_cache"]})
        engine.adapter.probe.always = Unmeasurable(reason="its agent does not answer")

    engine.adapter.script("release", Act(effect="never", then=answers))
    with pytest.raises(Unreachable, match="another process now"):
        await engine.release(weights=V1, deadline_s=0.3)
    assert engine.adapter.engine.unmapped == {"kv_cache"}
    assert engine.facts.mapped == {"weights": None, "kv_cache": None}
    assert engine.state is State.FAILED
    engine.adapter.probe.always = None
    assert (await engine.recover()).state is State.WEIGHTS_RESTORED


async def test_a_restart_after_a_command_that_failed_and_settled_holds_what_it_launched_with() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("release", LIE)
    with pytest.raises(NotProved):
        await engine.release(weights=V1, deadline_s=0.3)
    assert engine.state.stable
    engine.adapter.engine.restart()
    await engine.recover()
    assert engine.facts.contents == {"weights": Contents("launched", "v0")}


async def test_a_process_that_answered_the_close_of_the_one_before_it_is_not_released() -> None:
    def replaced(model: ScriptedEngine) -> None:
        model.restart()
        model.apply("pause", {"mode": "abort"})

    engine = await engine_in(State.RELEASED)
    engine.adapter.engine.apply("resume", {})  # somebody opens it, and so it is to be closed
    engine.adapter.script("pause", Act(then=replaced))
    found = await engine.recover()
    assert engine.adapter.engine.unmapped == set(), "the process that answers now holds everything"
    assert found.state is State.FAILED
    assert "did not answer as the same process" in found.reason
    assert not engine.memory_is_free
    assert (await engine.recover()).state is State.DRAINED


class _EndedError(BaseException):
    """The driver's process ends here."""


async def test_a_call_that_was_under_way_has_ended_with_the_process_that_it_went_to(tmp_path: Path) -> None:
    adapter, store = ScriptedAdapter("e"), Store(tmp_path / "engines")
    first = await Engine(adapter, policy=QUICK, probe=adapter.probe, store=store).connect()
    await first.pause()
    await first.drain()

    async def ends(call: Call, *, deadline_s: float) -> Reply:
        store.save = never  # type: ignore[method-assign]
        raise _EndedError

    def never(*given: Any) -> None:
        raise _EndedError

    send, adapter.send = adapter.send, ends  # type: ignore[method-assign]
    with pytest.raises(_EndedError):
        await first.release(weights=V1, deadline_s=600.0)
    adapter.send = send  # type: ignore[method-assign]
    adapter.engine.restart()
    again = Engine(adapter, policy=QUICK, probe=adapter.probe, store=Store(tmp_path / "engines"))
    await again.connect(deadline_s=5.0)  # not after the ten minutes that the release was given
    assert again.state is State.SERVING
    assert again.facts.boot == adapter.engine.boot


async def test_nothing_is_sent_where_two_processes_answer_once_another_driver_used_one(tmp_path: Path) -> None:
    adapter = ScriptedAdapter("e")
    both = [Engine(adapter, policy=QUICK, probe=adapter.probe, lease=Leases(tmp_path / "leases")) for _ in range(2)]
    first, second = [await each.connect() for each in both]
    async with Fleet([first]).offloaded(weights=V1):
        pass
    look, looks, before = adapter.observe, iter(range(1000)), sent(second)

    async def balanced(want: frozenset[Fact], *, deadline_s: float) -> Observation:
        seen = await look(want, deadline_s=deadline_s)
        number = next(looks)
        return replace(seen, boot="another") if number < 3 or number % 2 else seen

    adapter.observe = balanced  # type: ignore[method-assign]
    with pytest.raises(Unreachable, match="two processes answer at this address"):
        await second.pause(deadline_s=1.0)
    assert sent(second) == before
    assert second.state is State.FAILED


async def test_of_two_processes_at_an_address_neither_is_attached_to_where_what_is_kept_has_other_tags(
    tmp_path: Path,
) -> None:
    def driver() -> Engine:
        return Engine(adapter, policy=QUICK, probe=adapter.probe, store=Store(tmp_path / "engines"))

    adapter = ScriptedAdapter("e")
    first = await driver().connect()
    before = adapter.engine.boot
    adapter.engine.restart()
    second = await driver().connect()
    store = Store(tmp_path / "engines")
    kept = store.load(first._session.key)
    assert kept is not None
    assert kept.calibration.boots == (before, second.facts.boot)
    others = kept.facts.learn({Fact.MAPPED: {"another": True}}, Grade.REPORTED)
    store.save(first._session.key, replace(kept, facts=others))
    adapter.engine.boot = before  # the first answers again: it has not ended
    adapter.engine.apply("pause", {"mode": "abort"})
    third = await driver().connect()
    assert third.state is State.FAILED
    assert "two processes answer at this address" in third.reason


async def test_where_two_processes_take_turns_at_an_address_nobody_attaches() -> None:
    adapter = ScriptedAdapter("e")
    look, looks = adapter.observe, iter(range(1000))

    async def in_turns(want: frozenset[Fact], *, deadline_s: float) -> Observation:
        seen = await look(want, deadline_s=deadline_s)
        return replace(seen, boot="another") if next(looks) % 2 else seen

    adapter.observe = in_turns  # type: ignore[method-assign]
    engine = Engine(adapter, policy=QUICK, probe=adapter.probe)
    with pytest.raises(ConfigurationError, match="two processes answer at this address"):
        await engine.connect()
    assert engine.state is State.DETACHED
