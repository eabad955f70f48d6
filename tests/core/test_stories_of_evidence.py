"""What an engine says and what is seen of it: lies that are not believed, and how well a claim must be known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rig import V1, engine_in, fleet_of, new_engine, sent, serving

from lifecycle import (
    ConfigurationError,
    Fact,
    FleetError,
    Grade,
    GuardRefused,
    NotProved,
    Policy,
    Refuted,
    State,
    Unmeasurable,
    Unreachable,
)
from lifecycle.testing import DONE, LIE, QUICK, REJECTED


async def test_a_restore_that_lies_is_not_believed() -> None:
    engine = await engine_in(State.RELEASED)
    engine.adapter.script("restore", LIE)
    with pytest.raises(NotProved, match="its bytes have not come back"):
        await engine.restore_weights(deadline_s=0.1)
    assert engine.state is State.RELEASED, "its bytes say that nothing came back"
    assert not engine.memory_is_free


async def test_a_bogus_label_is_refused() -> None:
    engine = await engine_in(State.WEIGHTS_RESTORED)
    engine.adapter.engine.false_label = "v7"
    with pytest.raises(NotProved, match="reports version 'v7', not 'v1'"):
        await engine.update_weights(V1, deadline_s=0.2)
    assert engine.state is State.WEIGHTS_RESTORED
    with pytest.raises(GuardRefused, match="contents unknown"):
        await engine.restore_kv()
    engine.adapter.engine.false_label = None
    await engine.update_weights(V1)
    await engine.restore_kv()


async def test_a_resume_that_does_not_answer_is_closed_again() -> None:
    engine = await engine_in(State.KV_RESTORED)
    engine.adapter.script("answers", Refuted(reason="it generated no token"))
    with pytest.raises(NotProved, match="it generated no token") as failed:
        await engine.resume()
    assert failed.value.settled is engine.state is State.PAUSED
    assert engine.adapter.engine.admission == "closed"
    assert sent(engine) == ["resume", "pause(abort)"]
    await engine.resume()
    assert engine.state is State.SERVING


async def test_grades_say_how_each_fact_is_known() -> None:
    engine = await serving()
    assert engine.facts.grades[Fact.MAPPED] is Grade.ASSERTED
    await engine.pause()
    assert engine.facts.grades[Fact.ADMISSION] is Grade.REPORTED
    engine.adapter.reports_admission = False
    await engine.drain()
    assert engine.facts.grades[Fact.ADMISSION] is Grade.ACKNOWLEDGED
    await engine.release(weights=V1)
    assert engine.facts.grades[Fact.MAPPED] is Grade.MEASURED


async def test_a_claim_that_must_be_better_known_than_the_engine_can_tell_is_refused() -> None:
    policy = Policy(settle_s=QUICK.settle_s, poll_s=QUICK.poll_s, accept={"admission_closed": Grade.REPORTED})
    engine = await serving(policy=policy)
    engine.adapter.reports_admission = False
    with pytest.raises(NotProved, match="only acknowledged, and reported is asked for"):
        await engine.pause(deadline_s=0.2)


async def test_evidence_that_the_engine_cannot_give_is_refused_at_connect() -> None:
    engine = new_engine(caps={"evidence": {"idle": Grade.ACKNOWLEDGED}})
    with pytest.raises(ConfigurationError, match=r"idle can only be acknowledged.*lower Policy.accept.*or only warn"):
        await engine.connect()
    blind = new_engine()
    blind.adapter.reports_processes = False
    with pytest.raises(ConfigurationError, match="memory_returned cannot be measured: its processes are not known"):
        await blind.connect()
    unmoved = new_engine(offload=False, caps={"evidence": {"idle": Grade.ACKNOWLEDGED}})
    await unmoved.connect()


async def test_evidence_that_the_engine_cannot_give_is_a_warning_where_the_operator_says_so() -> None:
    engine = new_engine(policy=Policy(settle_s=0.05, poll_s=0.001, unprovable="warn"))
    engine.adapter.reports_processes = False
    await engine.connect()
    assert engine.state is State.SERVING
    assert isinstance(engine.conditions["memory_returned"].verdict, Unmeasurable)
    await engine.pause()
    await engine.drain()
    with pytest.raises(NotProved, match=r"tags_unmapped|memory_returned"):
        await engine.release(weights=V1, deadline_s=0.2)
    assert engine.state is State.RELEASED
    assert not engine.memory_is_free


async def test_an_operator_may_accept_less_about_the_memory() -> None:
    accept = {"memory_returned": Grade.ACKNOWLEDGED, "tags_unmapped": Grade.ACKNOWLEDGED}
    engine = new_engine(policy=Policy(settle_s=0.05, poll_s=0.001, accept=accept))
    engine.adapter.reports_processes = False
    await engine.connect()
    await engine.pause()
    await engine.drain()
    await engine.release(weights=V1, deadline_s=0.2)
    assert engine.state is State.RELEASED
    assert not engine.memory_is_free  # accepted is not proved


def silenced(model: Any) -> None:
    model.reachable = False


async def test_weights_that_were_answered_and_never_shown_are_not_known_when_it_answers_again() -> None:
    engine = await engine_in(State.WEIGHTS_RESTORED)
    engine.adapter.engine.false_label = V1.version
    engine.adapter.script("load", replace(DONE, effect="never", then=silenced))
    with pytest.raises(Unreachable, match="stopped answering"):
        await engine.update_weights(V1, deadline_s=0.4)
    engine.adapter.engine.reachable = True
    assert (await engine.recover()).state is State.WEIGHTS_RESTORED
    assert engine.facts.contents == {"weights": None}
    with pytest.raises(GuardRefused, match="weights_valid"):
        await engine.restore_kv()


async def test_memory_whose_restore_was_answered_and_never_shown_is_told_by_its_bytes() -> None:
    engine = await engine_in(State.RELEASED)
    engine.adapter.script("restore", replace(DONE, effect="never", then=silenced))
    with pytest.raises(Unreachable, match="stopped answering"):
        await engine.restore_weights(deadline_s=0.4)
    engine.adapter.engine.reachable = True
    assert (await engine.recover()).state is State.RELEASED, "a load into memory that is not mapped would kill it"


async def test_no_device_is_free_after_a_release_of_more_than_was_named() -> None:
    engine = await engine_in(State.DRAINED)

    def releases_the_weights_too(model: Any) -> None:
        model.apply("release", {"tags": ["weights"]})

    engine.adapter.script("release", replace(DONE, then=releases_the_weights_too))
    with pytest.raises(NotProved, match="more than what was named was released"):
        await engine.release(["kv_cache"], deadline_s=0.3)
    assert engine.state is State.RELEASED, "its bytes say that all of it is gone"
    assert engine.facts.unmapped() == {"weights", "kv_cache"}
    assert engine.facts.contents == {"weights": None}
    assert not engine.memory_is_free, "what was judged was a release of the cache alone"


async def test_one_that_does_not_answer_and_cannot_be_closed_is_not_called_serving() -> None:
    fleet, _ = await fleet_of("e", router=True)
    engine = fleet["e"]
    await fleet.offload(weights=V1)
    engine.adapter.always("answers", Refuted(reason="no token came"))
    engine.adapter.always("pause", REJECTED)
    with pytest.raises(FleetError, match=r"answers is refuted.*settled to failed"):
        await fleet.onload(deadline_s=0.5)
    with pytest.raises(FleetError):
        await fleet.onload(deadline_s=0.5)
    assert fleet.router.closed == {"e"}
    engine.adapter.as_modelled()
    assert (await engine.recover()).state is State.SERVING
