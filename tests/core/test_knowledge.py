"""Knowledge, function by function, and what is decided from it: pure, so no engine is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rig import V1, engine_in, facts

from lifecycle import (
    Contents,
    Fact,
    Facts,
    Grade,
    Proved,
    Refuted,
    RestoreWeights,
    State,
    UpdateWeights,
)
from lifecycle.core.calls import Call
from lifecycle.core.facts import GARBAGE, Admission, Basis
from lifecycle.core.observation import Observation
from lifecycle.core.record import Calibration, Record, Uncertain, UncertainCall
from lifecycle.rules import knowledge, table
from lifecycle.rules.decision import AskIdle, Close, Enter, ReadBytes, Stay, decide
from lifecycle.testing import capabilities

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


def test_memory_that_others_moved_is_nobodys_to_hand_over() -> None:
    released = facts(mapped={"weights": False, "kv_cache": False})
    record = Record(state=State.RELEASED, facts=released, uncertain=Uncertain(call=IN_DOUBT))
    record = record.with_condition("memory_returned", Proved(grade=Grade.MEASURED))
    assert record.memory_is_free
    opened = knowledge.after_observation(record, Observation(boot="boot-1", admission="open"), capabilities())
    assert "memory_returned" not in opened.conditions
    assert opened.facts.mapped == {"weights": None, "kv_cache": None}
    assert opened.facts.contents == {"weights": None}
    assert opened.facts.cache_fresh is None
    assert opened.uncertain.call is None


def test_of_what_was_kept_only_a_released_engines_memory_still_says_something() -> None:
    seen = Observation(boot="boot-1", admission="closed")
    record = Record(state=State.DRAINED, facts=BEGUN).with_condition("memory_returned", Proved(grade=Grade.MEASURED))
    record = record.with_condition("answers", Proved(grade=Grade.MEASURED))
    assert knowledge.seen_again(record, seen, capabilities()).conditions == {}
    kept = knowledge.seen_again(replace(record, state=State.RELEASED), seen, capabilities())
    assert list(kept.conditions) == ["memory_returned"]


def test_a_command_that_was_under_way_may_run_still_when_its_engine_is_seen_again() -> None:
    under_way = Record(state=State.PAUSING, facts=BEGUN)
    again = knowledge.seen_again(under_way, Observation(boot="boot-1"), capabilities())
    assert again.uncertain.needs_barrier
    assert again.facts == replace(
        facts(boot="boot-1"),
        admission=None,
        paused_by=None,
        running=None,
        basis={
            fact: basis
            for fact, basis in {**BEGUN.basis, Fact.MAPPED: Basis(Grade.ASSERTED, "remembered")}.items()
            if fact not in (Fact.ADMISSION, Fact.PAUSED_BY, Fact.RUNNING)
        },
    )
    stable = knowledge.seen_again(replace(under_way, state=State.DRAINED), Observation(boot="boot-1"), capabilities())
    assert stable.facts == BEGUN.learn({Fact.MAPPED: {}}, Grade.ASSERTED, cause="remembered")
    assert not stable.uncertain.needs_barrier


@pytest.mark.parametrize("now", ["open", "closed"])
def test_another_admission_says_nothing_of_what_runs_nor_of_how_it_was_paused(now: Admission) -> None:
    before = facts(admission="closed" if now == "open" else "open")
    seen = Observation(boot="boot-1", admission=now)
    after = knowledge.after_observation(Record(facts=before), seen, capabilities()).facts
    assert after.admission == now
    assert after.running is None
    assert after.paused_by == (None if now == "open" else "abort")
    assert after.grades[Fact.ADMISSION] is Grade.REPORTED
    same = knowledge.after_observation(Record(facts=before), replace(seen, admission=before.admission), capabilities())
    assert same.facts == before


@pytest.mark.parametrize(
    ("label", "held", "left"),
    [
        ("v0", Contents("launched", "v0"), Contents("launched", "v0")),
        ("v9", Contents("launched", "v0"), None),
        ("v9", Contents("launched"), Contents("launched")),
        (None, Contents("loaded", "v0"), Contents("loaded", "v0")),
        ("v9", GARBAGE, GARBAGE),
    ],
)
def test_another_label_denies_the_contents_it_is_about(
    label: str | None, held: Contents, left: Contents | None
) -> None:
    record = Record(facts=facts(contents={"weights": held}))
    seen = Observation(boot="boot-1", weights_label=label)
    assert knowledge.after_observation(record, seen, capabilities()).facts.contents == {"weights": left}


def test_what_a_person_asserts_leaves_nothing_in_doubt_and_nothing_measured() -> None:
    record = Record(state=State.FAILED, facts=BEGUN, uncertain=Uncertain(call=IN_DOUBT))
    record = record.with_condition("memory_returned", Proved(grade=Grade.MEASURED))
    said = knowledge.asserted(record, State.RELEASED, capabilities(), "keep")
    assert said.uncertain.call is None
    assert "memory_returned" not in said.conditions
    assert said.facts.mapped == {"weights": False, "kv_cache": False}
    assert (said.facts.admission, said.facts.paused_by, said.facts.running) == ("closed", "keep", 0)
    restored = knowledge.asserted(record, State.WEIGHTS_RESTORED, capabilities(), "abort")
    assert restored.facts.mapped == {"weights": True, "kv_cache": False}
    serving_ = knowledge.asserted(record, State.SERVING, capabilities(), "abort")
    assert (serving_.facts.admission, serving_.facts.cache_fresh) == ("open", True)


# deciding where an engine is

OPEN = facts(admission="open", paused_by=None, contents={"weights": Contents("launched", "v0")})
NONE_TRIED: frozenset[type] = frozenset()
#: Closed, with KV memory unmapped, and nothing tells whether requests run.
HALF = facts(mapped={"weights": True, "kv_cache": False}, running=None)


@pytest.mark.parametrize(
    ("known", "tried", "how", "step"),
    [
        (OPEN, NONE_TRIED, {}, Enter(State.SERVING)),
        (OPEN, NONE_TRIED, {"must_close": True}, Close()),
        (OPEN, frozenset({Close}), {"must_close": True}, Stay),
        (OPEN, NONE_TRIED, {"may_close": False, "must_close": False}, Enter(State.SERVING)),
        (replace(OPEN, admission=None), NONE_TRIED, {}, Close()),
        (replace(OPEN, admission=None), frozenset({Close}), {}, Stay),
        (replace(OPEN, admission=None), NONE_TRIED, {"may_close": False}, Stay),
        (replace(OPEN, contents={"weights": None}), NONE_TRIED, {}, Close()),
        (replace(OPEN, contents={"weights": None}), NONE_TRIED, {"may_close": False}, Stay),
        (replace(OPEN, mapped={"weights": True, "kv_cache": False}), NONE_TRIED, {}, Close()),
        (replace(OPEN, mapped={"weights": True, "kv_cache": None}), NONE_TRIED, {}, ReadBytes()),
        (replace(OPEN, mapped={"weights": True, "kv_cache": None}), frozenset({ReadBytes}), {}, Close()),
        (BEGUN, NONE_TRIED, {"must_close": True}, Enter(State.DRAINED)),
        (replace(BEGUN, running=None), NONE_TRIED, {}, Enter(State.PAUSED)),
        (facts(mapped={"weights": False, "kv_cache": None}), frozenset({ReadBytes}), {}, Stay),
        (HALF, NONE_TRIED, {}, AskIdle()),
        (HALF, NONE_TRIED, {"may_close": False}, Stay),
        (HALF, frozenset({AskIdle}), {}, Stay),
        (replace(HALF, running=3), NONE_TRIED, {}, Stay),
        (replace(HALF, running=0), NONE_TRIED, {}, Enter(State.WEIGHTS_RESTORED)),
    ],
)
def test_what_is_done_next_to_find_out_where_an_engine_is(
    known: Facts, tried: frozenset[type], how: dict[str, bool], step: object
) -> None:
    record = Record(facts=known, calibration=Calibration(attached_boot="boot-1"))
    options = {"may_close": True, **how}
    found = decide(record, capabilities(), tried=tried, **options)
    assert type(found) is step if isinstance(step, type) else found == step
    unsettled = replace(record, uncertain=Uncertain(needs_barrier=True))
    assert isinstance(decide(unsettled, capabilities(), tried=tried, **options), Stay)
