"""What mutants of the core survived before: one place each, seen to fail where that place is broken."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rig import V1, V2, believing, engine_in, facts, put, serving

from lifecycle import (
    Contents,
    Fact,
    Facts,
    Grade,
    GuardRefused,
    Kept,
    Refuted,
    RestoreWeights,
    State,
    TagSpec,
    Transition,
    UpdateWeights,
)
from lifecycle.core.calls import Call
from lifecycle.core.observation import Observation
from lifecycle.core.observer import Observers
from lifecycle.core.record import Record, Uncertain, UncertainCall
from lifecycle.core.units import GIB
from lifecycle.engine.session import Edge, NotSaved
from lifecycle.rules import guards, knowledge, table
from lifecycle.rules.evidence import Context
from lifecycle.rules.machine import NoSuchEdge, next_state
from lifecycle.testing import WEIGHTS, capabilities

# the machine and the session


async def test_a_guard_that_raises_is_no_store_that_cannot_be_written() -> None:
    engine = await serving()
    check = guards.mode_supported.check

    def broken(context: Context) -> str | None:
        raise KeyError("a mistake in a guard")

    object.__setattr__(guards.mode_supported, "check", broken)
    try:
        with pytest.raises(KeyError, match="a mistake in a guard"):
            await engine.pause()
    finally:
        object.__setattr__(guards.mode_supported, "check", check)
    assert engine.state is State.SERVING
    assert engine.busy is None
    await engine.pause()


def test_an_unknown_trigger_leads_nowhere() -> None:
    with pytest.raises(NoSuchEdge, match="there is no trigger 'fly'"):
        next_state(State.SERVING, "fly")
    with pytest.raises(NoSuchEdge, match="drain leads nowhere from serving"):
        next_state(State.SERVING, "drain")


async def test_a_commit_that_must_be_saved_and_is_not_changes_nothing() -> None:
    engine, heard = await serving(), []

    class Full:
        def save(self, engine: str, record: Record) -> None:
            raise OSError("disk full")

        def load(self, engine: str) -> Record | None:
            return None

    class Listens:
        def transition(self, record: Transition) -> None:
            heard.append(record.trigger)

    session, before = engine._session, engine.record
    session.store, session.observers = Full(), Observers([Listens()])
    with pytest.raises(NotSaved, match="disk full") as unsaved:
        session.commit(replace(before, state=State.SERVING), Edge("contradicted"), save="must")
    assert isinstance(unsaved.value.__cause__, OSError)
    with pytest.raises(GuardRefused, match="disk full"):
        engine.set_desired(V2)
    with pytest.raises(GuardRefused, match="disk full"):
        await engine.pause()
    assert engine.record is before
    assert heard == []
    session.go("contradicted", reason="entered all the same")
    assert engine.state is State.FAILED
    assert heard == ["contradicted"]


async def test_what_is_saved_and_when() -> None:
    engine, saved = await serving(), []

    class Notes:
        def save(self, engine: str, record: Record) -> None:
            saved.append(record)

        def load(self, engine: str) -> Record | None:
            return None

    engine._session.store = Notes()
    await engine.pause()
    assert [record.state for record in saved] == [State.PAUSING, State.PAUSED]
    engine.set_desired(V2)
    assert saved[-1] == engine.record
    assert len(saved) == 3
    await engine.drain()
    with pytest.raises(GuardRefused):
        await engine.release(weights=Kept())
    assert len(saved) == 5, "a refusal is no news"


# reconcile: bytes


@pytest.mark.parametrize("state", [State.DRAINED, State.RELEASED])
async def test_a_mapping_that_is_unknown_is_read_from_bytes(state: State) -> None:
    engine = await engine_in(state)
    put(engine, state=State.FAILED)
    believing(engine, mapped={"weights": None, "kv_cache": None})
    assert await engine.recover() is state
    assert engine.facts.grades[Fact.MAPPED] is Grade.MEASURED
    assert engine.adapter.journal.kinds("residual")


async def test_where_two_choices_of_tags_fit_the_bytes_it_stays_failed() -> None:
    one, two = (TagSpec(name, "kv", "discarded", 16 * GIB) for name in ("kv_a", "kv_b"))
    engine = await engine_in(State.DRAINED, WEIGHTS, one, two)
    await engine.release(["kv_a"], weights=V1)
    put(engine, state=State.FAILED)
    believing(engine, mapped={"kv_a": None, "kv_b": None})
    assert await engine.recover() is State.FAILED
    assert engine.facts.mapped == {"weights": True, "kv_a": None, "kv_b": None}
    engine.adapter.engine.apply("release", {"tags": ["kv_b"]})
    believing(engine, mapped={"weights": True})
    assert await engine.recover() is State.WEIGHTS_RESTORED, "now only one does"


# knowledge, function by function

BEGUN = facts()
IN_DOUBT = UncertainCall({Fact.MAPPED: {"weights": False}}, BEGUN, BEGUN)
EVERYTHING_UNCERTAIN = Uncertain(needs_barrier=True, call=IN_DOUBT, acked_unrepeatable=True)
CLOSE = Call("pause", effect={Fact.ADMISSION: "closed"}, repeatable=True, refusal_is_untouched=True)


def test_after_a_push_that_failed_its_last_call_may_run_still() -> None:
    push = Call("push", effect={Fact.CONTENTS: {"weights": Contents("loaded", "v1")}})
    record = knowledge.after_push(Record(facts=BEGUN), push, failed=True)
    assert record.uncertain == Uncertain(needs_barrier=True)
    assert record.facts.contents == {"weights": None}
    record = knowledge.after_push(record, push, failed=False)
    assert record.uncertain.needs_barrier, "an answer to the next push is no barrier"


def test_a_command_begins_without_the_calls_of_the_one_before() -> None:
    record = Record(facts=BEGUN, uncertain=EVERYTHING_UNCERTAIN)
    assert knowledge.command_began(record).uncertain == Uncertain(needs_barrier=True)
    assert knowledge.command_ended(record).uncertain == replace(EVERYTHING_UNCERTAIN, acked_unrepeatable=False)


def test_one_that_should_be_closed_and_refused_is_not_known_to_be_open() -> None:
    record = knowledge.not_closed(Record(facts=facts(admission="open")), CLOSE)
    assert record.facts.admission is None
    assert Fact.ADMISSION not in record.facts.grades


async def test_what_an_update_left_unshown_has_no_fresh_cache() -> None:
    engine = await engine_in(State.DRAINED)
    context = engine.context(UpdateWeights(V1))
    loaded = engine.facts.learn({Fact.CONTENTS: {"weights": Contents("loaded", "v1")}}, Grade.ACKNOWLEDGED)
    row = table.row("update_weights", State.DRAINED)
    assert row is not None
    record = knowledge.unproved(replace(engine.record, facts=loaded), row.proofs, context)
    assert loaded.cache_fresh
    assert (record.facts.contents, record.facts.cache_fresh) == ({"weights": None}, None)


async def test_a_restore_left_unshown_is_in_doubt_since_before_it() -> None:
    engine = await engine_in(State.RELEASED)
    context = engine._session.context(RestoreWeights(), targets=frozenset({"weights"}))
    mapped = engine.facts.learn({Fact.MAPPED: {"weights": True}}, Grade.ACKNOWLEDGED)
    row = table.row("restore_weights", State.RELEASED)
    assert row is not None
    record = knowledge.unproved(replace(engine.record, facts=mapped), row.proofs, context)
    assert record.facts.mapped == {"weights": None, "kv_cache": False}
    assert record.uncertain.call is not None
    assert record.uncertain.call.before == engine.facts
    assert record.uncertain.call.effect == {Fact.MAPPED: {"weights": True}}


def test_of_a_process_that_is_gone_nothing_can_run_still() -> None:
    record = Record(facts=BEGUN, uncertain=EVERYTHING_UNCERTAIN)
    gone = knowledge.after_observation(record, Observation(alive=False), capabilities())
    assert not gone.uncertain.needs_barrier
    assert gone.facts == Facts(boot="boot-1")


def test_another_process_has_none_of_what_hung_on_the_one_before() -> None:
    record = Record(facts=BEGUN, uncertain=Uncertain(call=IN_DOUBT)).with_condition(
        "answers", Refuted(reason="no token")
    )
    seen = Observation(boot="boot-2", alive=True, admission="open")
    fresh = knowledge.after_observation(record, seen, capabilities())
    assert fresh.conditions == {}
    assert fresh.uncertain.call is None
    assert fresh.facts.boot == "boot-2"
