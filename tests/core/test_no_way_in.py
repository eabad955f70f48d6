"""No public way leads an engine to a state without evidence, but `override_state`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from rig import V1, engine_in, serving

from lifecycle import Condition, Engine, Facts, Grade, InvalidTransition, Proved, State

FREE = Condition(Proved(grade=Grade.MEASURED))

#: What made a state, or what is claimed of one, out of nothing before there was a Session.
OLD_WAYS: dict[str, Callable[[Any], object]] = {
    "move": lambda engine: engine.move("contradicted"),
    "note": lambda engine: engine.note("succeeded", State.RELEASING),
    "state": lambda engine: setattr(engine, "state", State.RELEASED),
    "facts": lambda engine: setattr(engine, "facts", Facts()),
    "record": lambda engine: setattr(engine, "record", engine.record),
    "conditions": lambda engine: setattr(engine, "conditions", {"memory_returned": FREE}),
    "a condition": lambda engine: engine.conditions.__setitem__("memory_returned", FREE),
    "a mapped tag": lambda engine: engine.facts.mapped.__setitem__("weights", False),
    "a fact": lambda engine: setattr(engine.facts, "admission", "closed"),
    "a record's state": lambda engine: setattr(engine.record, "state", State.RELEASED),
    "memory_is_free": lambda engine: setattr(engine, "memory_is_free", True),
    "desired": lambda engine: setattr(engine, "desired", engine.desired),
    "expect": lambda engine: engine.expect(V1),
    "remember": lambda engine: engine.remember(V1),
    "keep": lambda engine: engine.keep(),
    "learn_expectation": lambda engine: engine.learn_expectation(frozenset({"weights"}), None),
    "unsettled": lambda engine: engine.unsettled,
    "doubt": lambda engine: engine.doubt,
    "touched": lambda engine: engine.touched,
    "wanted": lambda engine: engine.wanted,
    "attached_boot": lambda engine: engine.attached_boot,
    "full": lambda engine: engine.full,
    "learned": lambda engine: engine.learned,
    "kept_checksums": lambda engine: engine.kept_checksums,
    "capabilities": lambda engine: setattr(engine, "capabilities", engine.capabilities),
    "busy": lambda engine: setattr(engine, "busy", None),
    "in_move": lambda engine: setattr(engine, "in_move", None),
}


@pytest.mark.parametrize("way", OLD_WAYS)
async def test_an_old_way_is_closed(way: str) -> None:
    engine = await serving()
    before = engine.record
    with pytest.raises((AttributeError, TypeError)):
        OLD_WAYS[way](engine)
    assert engine.record is before


@pytest.mark.parametrize("state", [State.SERVING, State.PAUSED, State.DRAINED, State.RELEASED])
async def test_a_state_that_is_claimed_on_evidence_cannot_be_overridden(state: State) -> None:
    engine = await engine_in(state)
    before = engine.record
    with pytest.raises(InvalidTransition):
        engine.override_state(State.RELEASED, by="a test", reason="no evidence at all")
    assert engine.record is before


async def test_what_is_asserted_is_graded_so_in_every_fact_and_hands_nothing_over() -> None:
    engine: Engine = await engine_in(State.FAILED)
    engine.override_state(State.RELEASED, by="a test", reason="looked at it")
    claimed = {fact for fact, grade in engine.facts.grades.items() if grade is Grade.ASSERTED}
    assert {"admission", "mapped", "running", "paused_by"} <= claimed
    assert not engine.memory_is_free


async def test_what_a_move_uses_leads_to_no_state() -> None:
    engine = await serving()
    engine.set_desired(V1)
    Engine.rollback_desired_of([(engine, engine.desired)])
    engine.router_confirmed(False, Proved(grade=Grade.REPORTED), Grade.REPORTED)
    engine.forget_canary("v1")
    engine.capabilities_changed(engine.capabilities)
    with engine.claimed_for("a test"):
        assert engine.in_move == "a test"
    assert engine.state is State.SERVING


async def test_declare_is_the_deprecated_name_of_override_state() -> None:
    engine = await engine_in(State.FAILED)
    with pytest.warns(DeprecationWarning, match="override_state"):
        engine.declare(State.DRAINED, by="a test", reason="looked at it")
    assert engine.state is State.DRAINED
