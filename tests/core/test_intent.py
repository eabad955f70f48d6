"""Intents: what is written down before a call, and what a driver that ends before its answer leaves unknown."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rig import V1, facts

from lifecycle import Engine, EngineHeld, Fact, Fleet, Pending, Release, State, Unreachable
from lifecycle.core.calls import Call, Reply
from lifecycle.core.facts import GARBAGE, Facts, TagSpec
from lifecycle.core.journal import CallEnded
from lifecycle.core.lease import Driver
from lifecycle.core.observation import Observation
from lifecycle.core.readings import Holder, Reading
from lifecycle.core.record import Record
from lifecycle.core.states import TRANSIENT
from lifecycle.core.units import GIB
from lifecycle.rules import knowledge
from lifecycle.rules.evidence import Evidence
from lifecycle.rules.knowledge.kept import CHANGED_BY
from lifecycle.rules.mapping import since_call_before
from lifecycle.store.journal import read_file
from lifecycle.store.sqlite import Store
from lifecycle.testing import QUICK, ScriptedAdapter, capabilities

ME = Driver("me", "pid 1 on here")
KV_FIRST = Call("release", {"tags": ["kv_cache"]}, {Fact.MAPPED: {"kv_cache": False}, Fact.CACHE_FRESH: False})
WEIGHTS = Call("release", {"tags": ["weights"]}, {Fact.MAPPED: {"weights": False}, Fact.CONTENTS: {"weights": GARBAGE}})
EQUAL = (TagSpec("weights", "weights", "discarded", 4 * GIB), TagSpec("kv_cache", "kv", "discarded", 4 * GIB))


def store_of(path: Path) -> Store:
    return Store(path / "engines")


def driver(adapter: ScriptedAdapter, path: Path, **policy: Any) -> Engine:
    """A driver of this engine, in a process of its own as far as what is kept tells."""
    return Engine(adapter, name="e", policy=replace(QUICK, **policy), probe=adapter.probe, store=store_of(path))


def kept(adapter: ScriptedAdapter, path: Path) -> Record:
    record = store_of(path).load(adapter.url)
    assert record is not None
    return record


# what is written down


@pytest.mark.parametrize(
    ("call", "needed"),
    [
        (WEIGHTS, True),
        (Call("load", {}, {Fact.CONTENTS: {"weights": None}}, repeatable=True), True),
        (Call("pause", {}, {Fact.ADMISSION: "closed"}, repeatable=True), False),
        (Call("flush", {}, {Fact.CACHE_FRESH: True}, repeatable=True), False),
        (Call("push_tensor", {"version": "v1"}), False),
    ],
)
def test_what_changes_memory_is_written_down_before_it_is_sent(call: Call, needed: bool) -> None:
    assert knowledge.needs_intent(call) is needed


async def test_the_intent_is_kept_while_the_call_runs_and_is_over_with_its_answer(tmp_path: Path) -> None:
    adapter = ScriptedAdapter("e")
    engine = await driver(adapter, tmp_path).connect()
    await engine.pause()
    await engine.drain()
    seen: list[Record] = []
    send = adapter.send

    async def looked(call: Call, *, deadline_s: float) -> Reply:
        seen.append(kept(adapter, tmp_path))
        return await send(call, deadline_s=deadline_s)

    adapter.send = looked
    began = time.time()
    await engine.release(weights=V1, deadline_s=20.0)
    first, second = (record.uncertain.intent for record in seen)
    assert first is not None
    assert second is not None
    assert (first.call, second.call) == ("release(tags=['kv_cache'])", "release(tags=['weights'])")
    assert began < first.since_s <= first.until_s <= began + 25.0
    assert first.doubt.baseline.resident_bytes - second.doubt.baseline.resident_bytes == 8 * GIB
    assert second.doubt.targets == {"weights"}
    assert kept(adapter, tmp_path).uncertain.intent is engine.record.uncertain.intent is None


async def test_a_call_that_cannot_be_written_down_is_not_sent(tmp_path: Path) -> None:
    adapter = ScriptedAdapter("e")
    engine = await driver(adapter, tmp_path).connect()
    await engine.pause()
    await engine.drain()
    save, saves = engine._session.store.save, []

    def full(name: str, record: Record) -> None:
        saves.append(record)
        if record.uncertain.intent is not None:
            raise OSError("no space left")
        save(name, record)

    engine._session.store.save = full
    with pytest.raises(Unreachable, match=r"not sent, since that could not be written down \(no space left\)"):
        await engine.release(weights=V1)
    assert "release" not in adapter.journal.calls()
    assert engine.state is State.DRAINED
    engine.journal.flush()
    ended = [entry.event for entry in read_file(tmp_path / "engines") if isinstance(entry.event, CallEnded)][-1]
    assert (ended.call.partition("(")[0], ended.outcome) == ("release", "unsent")


async def test_attaching_while_a_call_may_run_is_refused_until_its_deadline(tmp_path: Path) -> None:
    adapter = ScriptedAdapter("e")
    await _dies(adapter, tmp_path, "release", before_call=1, deadline_s=0.4)
    with pytest.raises(EngineHeld, match=r"release\(tags=\['kv_cache'\]\).*may run until then") as held:
        await driver(adapter, tmp_path).connect(deadline_s=0.01)
    assert "pid" in held.value.who
    until_s = kept(adapter, tmp_path).uncertain.intent.until_s
    assert (await driver(adapter, tmp_path).connect()).state is State.DRAINED
    assert time.time() >= until_s, "it waited for the call, and looked again"


# what is unknown afterwards


def test_every_transient_state_says_what_may_have_changed() -> None:
    assert set(CHANGED_BY) == TRANSIENT


@pytest.mark.parametrize("state", [State.PAUSING, State.REPAUSING, State.DRAINING, State.RESUMING])
def test_pausing_draining_and_resuming_leave_mapping_and_contents_known(state: State) -> None:
    known = facts(mapped={"weights": False, "kv_cache": True})
    after = knowledge.interrupted(Record(state=state, facts=known))
    assert after.facts.mapped == known.mapped
    assert after.facts.contents == known.contents
    assert after.facts.running is None
    assert (after.facts.admission is None) is (state is not State.DRAINING)
    assert after.uncertain.needs_barrier


def test_a_release_leaves_unknown_what_its_one_intended_call_could_change() -> None:
    known = facts(mapped={"weights": True, "kv_cache": False}, cache_fresh=False)
    record = knowledge.intended(Record(facts=known), WEIGHTS, None, since_s=0.0, until_s=1.0, by=ME)
    after = knowledge.interrupted(replace(record, state=State.RELEASING))
    assert after.facts.mapped == {"weights": None, "kv_cache": False}
    assert after.facts.contents == {"weights": None}
    assert after.facts.admission == "closed"
    assert after.uncertain.call.before == known
    assert after.uncertain.intent is None
    untouched = knowledge.interrupted(Record(state=State.RELEASING, facts=known))
    assert untouched.facts.mapped == known.mapped, "nothing had been sent"


def test_what_earlier_calls_answered_is_unknown_too_where_their_bytes_were_not_seen_to_go() -> None:
    at_start = facts()
    now = at_start.learn(KV_FIRST.effect, at_start.grades[Fact.MAPPED])
    record = knowledge.intended(Record(facts=now), WEIGHTS, None, since_s=0.0, until_s=1.0, by=ME)
    intent = record.uncertain.intent
    doubt = replace(intent.doubt, at_start=at_start, targets=frozenset({"weights", "kv_cache"}))
    record = replace(record, state=State.RELEASING)
    record = replace(record, uncertain=replace(record.uncertain, intent=replace(intent, doubt=doubt)))
    assert knowledge.interrupted(record).facts.mapped == {"weights": None, "kv_cache": None}


@pytest.mark.parametrize(("after_first", "told_apart"), [(5 * GIB, True), (5 * GIB + GIB // 8, True), (8 * GIB, False)])
async def test_the_call_before_must_have_been_seen_to_go(after_first: int, told_apart: bool) -> None:
    before, after = (
        Reading({"gpu0": held}, (Holder(1, "gpu0", held, "e"),), "test") for held in (9 * GIB, after_first)
    )
    adapter = ScriptedAdapter("e", capabilities(*EQUAL))
    engine = await Engine(adapter, policy=QUICK, probe=adapter.probe).connect()
    context = replace(
        engine.context(Release()),
        targets=frozenset({"weights", "kv_cache"}),
        baseline=Evidence(residual=before),
        readings_per_call=((frozenset({"kv_cache"}), after),),
    )
    found = since_call_before(context, engine.record, WEIGHTS)
    assert (found.targets == {"weights"}) is told_apart
    assert found.baseline.residual is (after if told_apart else before)
    assert since_call_before(replace(context, readings_per_call=()), engine.record, WEIGHTS).targets == context.targets


# drivers that end: of tags of equal size, under a threshold above them


class Ended(BaseException):
    """The driver's process ended: nothing of it runs any more, its handlers included."""


async def _dies(
    adapter: ScriptedAdapter, path: Path, command: str, *, before_call: int = 0, after_call: int = 0, **how: Any
) -> None:
    """A driver carried the engine round the ring and ended in this command, before or after its n-th call."""
    engine = await driver(adapter, path).connect()
    send, count = adapter.send, 0

    async def until_the_end(call: Call, *, deadline_s: float) -> Reply:
        nonlocal count
        if engine.busy != command:
            return await send(call, deadline_s=deadline_s)
        count += 1
        if count != before_call:
            await send(call, deadline_s=deadline_s)
        if count in (before_call, after_call):
            engine._session.store.save = _forgotten
            raise Ended
        return Reply("done")

    adapter.send = until_the_end
    steps: dict[str, Callable[..., Awaitable[Any]]] = {
        "pause": engine.pause,
        "drain": engine.drain,
        "release": lambda **how: engine.release(weights=V1, **how),
        "restore_weights": engine.restore_weights,
        "update_weights": lambda **how: engine.update_weights(V1, **how),
        "restore_kv": engine.restore_kv,
        "resume": engine.resume,
    }
    for name, step in steps.items():
        if name == command:
            with pytest.raises(Ended):
                await step(**how)
            break
        await step()
    adapter.send = send


def _forgotten(name: str, record: Record) -> None:
    raise Ended


@pytest.mark.parametrize(
    ("command", "where", "call"),
    [
        ("pause", "before", 1),
        ("pause", "after", 1),
        ("release", "before", 1),
        ("release", "after", 1),
        ("release", "before", 2),
        ("release", "after", 2),
        ("restore_weights", "before", 1),
        ("restore_weights", "after", 1),
        ("update_weights", "after", 1),
        ("restore_kv", "before", 1),
        ("restore_kv", "after", 1),
        ("resume", "before", 1),
        ("resume", "after", 1),
    ],
)
async def test_a_driver_that_ended_leaves_an_engine_that_comes_home(
    tmp_path: Path, command: str, where: str, call: int
) -> None:
    adapter = ScriptedAdapter("e", capabilities(*EQUAL))
    limit = {} if command in ("pause", "resume", "update_weights") else {"deadline_s": 0.3}
    await _dies(adapter, tmp_path, command, **{f"{where}_call": call}, **limit)
    engine = await _attached(adapter, tmp_path)
    assert engine.state is not State.FAILED, engine.facts
    assert engine.facts.unmapped() == adapter.engine.unmapped
    await _home(engine)
    assert adapter.engine.deaths == adapter.engine.violations == []


@pytest.mark.parametrize("point", [("release", 0, 2), ("restore_weights", 1, 0)])
async def test_what_was_left_released_without_a_proof_is_handed_over_once_it_is_measured(
    tmp_path: Path, point: tuple[str, int, int]
) -> None:
    command, before, after = point
    adapter = ScriptedAdapter("e", capabilities(*EQUAL))
    await _dies(adapter, tmp_path, command, before_call=before, after_call=after, deadline_s=0.3)
    engine = await _attached(adapter, tmp_path)
    assert engine.state is State.RELEASED
    found = await Fleet([engine]).recover(to="released", weights=V1)
    assert engine.memory_is_free, found
    await _home(engine)
    assert adapter.engine.deaths == adapter.engine.violations == []


async def test_a_release_that_is_remembered_is_believed_where_bytes_fit_it_beside_others(tmp_path: Path) -> None:
    adapter = ScriptedAdapter("e", capabilities(*EQUAL))
    first = await driver(adapter, tmp_path, residual_threshold_gib=2.0).connect()
    await first.pause()
    await first.drain()
    await first.release(["kv_cache"], weights=V1)
    adapter.engine.leaked_bytes = GIB  # more than its tags has grown: what is missing is the size of none
    second = await driver(adapter, tmp_path, residual_threshold_gib=2.0).connect()
    assert second.state is State.WEIGHTS_RESTORED
    assert second.facts.unmapped() == {"kv_cache"}
    await _home(second)
    assert adapter.engine.deaths == adapter.engine.violations == []


@pytest.mark.parametrize(("still_held", "free"), [(0, True), (5 * GIB, False)])
def test_memory_is_returned_since_every_tag_was_mapped_only_where_it_is_not_held_now(
    still_held: int, free: bool
) -> None:
    def reading(size: int) -> Reading:
        return Reading({"0": size}, (Holder(1, "0", size, "e"),), "test")

    known = Record(State.RELEASED, facts(mapped={"weights": False, "kv_cache": False}))
    known = replace(known, calibration=replace(known.calibration, reading_all_mapped=reading(9 * GIB)))
    others = knowledge.read_at_rest(known, reading(GIB), capabilities(*EQUAL), QUICK)
    assert not others.memory_is_free, "no driver of this record released it"
    known = known.with_condition("memory_returned", Pending(reason="memory was released or restored since"))
    now = knowledge.read_at_rest(known, reading(GIB + still_held), capabilities(*EQUAL), QUICK)
    assert now.memory_is_free is free


async def _attached(adapter: ScriptedAdapter, path: Path) -> Engine:
    limit_s = time.monotonic() + 5.0
    while True:
        try:
            return await driver(adapter, path, residual_threshold_gib=100.0).connect()
        except EngineHeld:
            assert time.monotonic() < limit_s
            _passed(adapter, path)


def _passed(adapter: ScriptedAdapter, path: Path) -> None:
    """The deadline of the intended call has passed."""
    record, store = kept(adapter, path), store_of(path)
    store.load(adapter.url)
    intent = replace(record.uncertain.intent, until_s=0.0)
    store.save(adapter.url, replace(record, uncertain=replace(record.uncertain, intent=intent)))


async def _home(engine: Engine) -> None:
    await Fleet([engine]).onload()
    assert engine.state is State.SERVING


def test_a_record_of_a_command_under_way_is_compared_with_what_is_observed() -> None:
    """Somebody opened it since: a drain that was under way does not excuse that."""
    record = Record(state=State.DRAINING, facts=replace(facts(mapped={"weights": False, "kv_cache": False})))
    after = knowledge.seen_again(record, Observation(boot="boot-1", admission="open"), capabilities())
    assert set(after.facts.mapped.values()) == {None}
    assert isinstance(after.facts, Facts)
