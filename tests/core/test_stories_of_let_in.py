"""Requests that run in an engine that was left closed and idle: what that says is not forgotten."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rig import V1, engine_in, facts, sent, serve_again

from lifecycle import Engine, Fact, Facts, Pending, Proved, State, Unmeasurable, Unreachable
from lifecycle.core.facts import Grade
from lifecycle.core.observation import Observation
from lifecycle.core.record import Record
from lifecycle.core.verdicts import REQUESTS_RUN, Verdict
from lifecycle.rules import knowledge
from lifecycle.rules.contradiction import requests_let_in
from lifecycle.testing import DONE, LOST, WEIGHTS, capabilities


async def let_in(*tags: Any) -> Engine:
    """An engine that was drained. Then somebody else opened it, loaded weights, and froze the requests that came."""
    engine = await engine_in(State.DRAINED, *tags)
    model = engine.adapter.engine
    model.apply("resume", {})
    model.submit(2)
    model.apply("load", {"path": "/models/others", "version": model.label, "flush": True})
    model.apply("pause", {"mode": "freeze"})
    return engine


@pytest.mark.parametrize("tags", [(), (WEIGHTS,)], ids=["weights and kv", "weights alone"])
async def test_a_release_that_finds_requests_leaves_the_weights_unknown(tags: tuple[Any, ...]) -> None:
    engine = await let_in(*tags)
    with pytest.raises(Unreachable, match="requests run, and it was left idle and closed") as failed:
        await engine.release(weights=V1)
    assert failed.value.settled is engine.state is State.PAUSED
    assert sent(engine) == [], "it is closed already"
    for _ in range(2):
        assert engine.facts.contents == {"weights": None}, "whoever let them in may have loaded others"
        assert engine.facts.cache_fresh is None
        assert engine.facts.running is None
        assert engine.facts.paused_by is None, "an abort of an engine that is frozen hangs it"
        assert (await engine.recover()).state is State.PAUSED


async def test_it_serves_again_with_weights_that_are_known() -> None:
    engine = await let_in()
    with pytest.raises(Unreachable):
        await engine.release(weights=V1)
    await engine.pause("keep")
    await serve_again(engine)
    assert str(engine.adapter.engine.contents["weights"]) == "loaded(v1)"


@pytest.mark.virtual_time
async def test_whether_its_memory_is_mapped_is_found_out_before_anything_is_released_again() -> None:
    engine = await let_in()
    engine.adapter.probe.always = Unmeasurable(reason="a test")
    with pytest.raises(Unreachable, match="whether kv_cache, weights is mapped is not known"):
        await engine.release(weights=V1)
    assert (await engine.recover()).state is State.FAILED
    assert engine.facts.mapped == {"weights": None, "kv_cache": None}


async def test_an_answer_of_which_it_is_not_known_whose_it_is_says_nothing() -> None:
    engine = await let_in()
    engine.adapter.script("observe", LOST)
    with pytest.raises(Unreachable, match="it stopped answering"):
        await engine.release(weights=V1)
    assert str(engine.facts.contents["weights"]) == "launched(v0)"


def test_what_another_process_says_denies_nothing_of_this_one() -> None:
    record, other = Record(facts=facts()), Observation(boot="boot-2", alive=True, admission="open")
    assert knowledge.denied(record, other, capabilities()).facts == record.facts


def closes(model: Any) -> None:
    model.apply("pause", {"mode": "abort"})


@pytest.mark.parametrize("asks", ["release", "verify"])
async def test_who_opened_it_and_has_closed_it_by_the_next_look_was_seen(asks: str) -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.engine.apply("resume", {})
    engine.adapter.script("barrier", replace(DONE, then=closes))
    if asks == "verify":
        await engine.verify()
    else:
        with pytest.raises(Unreachable, match="admission is open"):
            await engine.release(weights=V1)
    assert engine.state is State.DRAINED
    assert engine.facts.contents == {"weights": None}, "whoever had it open may have loaded others"


BUSY = Pending(reason="2 requests", figures={REQUESTS_RUN: True})


@pytest.mark.parametrize(
    ("known", "idle", "says"),
    [
        (facts(), BUSY, True),
        (facts(running=None), BUSY, False),
        (facts(running=1), BUSY, False),
        (facts(admission="open"), BUSY, False),
        (facts(admission=None), BUSY, False),
        (facts(), Pending(reason="no answer"), False),
        (facts(), Pending(reason="the device is busy", figures={REQUESTS_RUN: False}), False),
        (facts(), Unmeasurable(reason="frozen"), False),
        (facts(), Proved(grade=Grade.REPORTED, figures={REQUESTS_RUN: True}), False),
    ],
)
def test_what_says_that_somebody_else_opened_it(known: Facts, idle: Verdict, says: bool) -> None:
    assert (requests_let_in(known, capabilities(), idle) is not None) is says


def test_requests_that_reach_an_engine_without_admission_were_let_in_by_nobody() -> None:
    assert requests_let_in(facts(), capabilities(has_admission=False), BUSY) is None


async def test_a_drain_that_waits_for_its_own_requests_denies_nothing() -> None:
    engine = await engine_in(State.PAUSED)
    engine.adapter.engine.stubborn = 3
    await engine.drain()
    assert str(engine.facts.contents["weights"]) == "launched(v0)"
    assert engine.facts.grades[Fact.RUNNING] is Grade.REPORTED
