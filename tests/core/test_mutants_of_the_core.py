"""What mutants of the core survived before: one place each, seen to fail where that place is broken."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rig import V1, V2, believing, engine_in, facts, fleet_of, put, serving, states

from lifecycle import (
    Contents,
    Engine,
    Fact,
    Facts,
    FleetError,
    Grade,
    Group,
    GuardRefused,
    Kept,
    Proved,
    Pushed,
    Refuted,
    RestoreWeights,
    State,
    TagSpec,
    Transition,
)
from lifecycle.core.capabilities import PauseTraits
from lifecycle.core.encoding import decode, encode, encode_error
from lifecycle.core.facts import GARBAGE
from lifecycle.core.observation import Observation
from lifecycle.core.observer import MoveEvent, Observers
from lifecycle.core.record import Desired, Record, UncertainCall
from lifecycle.core.sources import Source
from lifecycle.core.units import GIB
from lifecycle.core.verdicts import Verdict
from lifecycle.engine.edge import Edge
from lifecycle.engine.reconcile import _note
from lifecycle.engine.session import NotSaved
from lifecycle.rules import guards, knowledge
from lifecycle.rules.desired import desired_unless_touched, needs_trainer, set_desired, source_after_release, was_loaded
from lifecycle.rules.evidence import Context
from lifecycle.rules.machine import NoSuchEdge, next_state
from lifecycle.store.sqlite import Store
from lifecycle.testing import DIE, LOST, QUICK, REJECTED, WEIGHTS, capabilities
from lifecycle.testing.scripted import PAUSE_MODES

EDGE = Transition("e", "default", "pause", State.SERVING, State.PAUSED)

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


@pytest.mark.provokes_violation("order")  # what is known is put there by hand
@pytest.mark.parametrize("state", [State.DRAINED, State.RELEASED])
async def test_a_mapping_that_is_unknown_is_read_from_bytes(state: State) -> None:
    engine = await engine_in(state)
    put(engine, state=State.FAILED)
    believing(engine, mapped={"weights": None, "kv_cache": None})
    assert (await engine.recover()).state is state
    assert engine.facts.grades[Fact.MAPPED] is Grade.MEASURED
    assert engine.adapter.journal.kinds("residual")


@pytest.mark.provokes_violation("order")  # what is known is put there by hand
async def test_where_two_choices_of_tags_fit_the_bytes_it_stays_failed() -> None:
    one, two = (TagSpec(name, "kv", "discarded", 16 * GIB) for name in ("kv_a", "kv_b"))
    engine = await engine_in(State.DRAINED, WEIGHTS, one, two)
    await engine.release(["kv_a"], weights=V1)
    put(engine, state=State.FAILED)
    believing(engine, mapped={"kv_a": None, "kv_b": None})
    assert (await engine.recover()).state is State.FAILED
    assert engine.facts.mapped == {"weights": True, "kv_a": None, "kv_b": None}
    engine.adapter.engine.apply("release", {"tags": ["kv_b"]})
    believing(engine, mapped={"weights": True})
    assert (await engine.recover()).state is State.WEIGHTS_RESTORED, "now only one does"


BEGUN = facts()
IN_DOUBT = UncertainCall({Fact.MAPPED: {"weights": False}}, BEGUN, BEGUN)

# reconcile: who answers


async def test_one_that_was_gone_and_answers_again_holds_its_devices_whatever_it_is() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.engine.die("killed")
    assert await engine.verify() is State.GONE
    assert engine.memory_is_free
    model = engine.adapter.engine
    model.restart()
    engine.adapter.always("pause", REJECTED)
    engine.adapter.script("residual", LOST)
    assert (await engine.recover()).state is State.FAILED, "it admits requests with weights that nobody named"
    assert not engine.memory_is_free


# values as JSON


@pytest.mark.parametrize(
    ("kind", "data", "says"),
    [
        (Source, None, "None is no Kept"),
        (Contents, {}, "Contents.origin is missing"),
        (Contents, {"origin": "stolen"}, "Contents.origin: 'stolen' is none of launched"),
        (Contents, {"type": "Call", "origin": "kept"}, "'Call' is none of Contents"),
        (Verdict, {"type": "Verdict"}, "'Verdict' is none of Proved"),
        (TagSpec, {"name": "t", "stage": "kv", "on_release": "kept", "expected_bytes": True}, "True is no int"),
        (Transition, {**encode(EDGE), "at_s": "noon"}, "'noon' is no float"),
        (tuple[str, int], ["a"], "1 values, and there should be 2"),
        (tuple[str, ...], "ab", "is no list"),
        (Facts, {"mapped": [["weights"]]}, "is no mapping"),
        (Facts, {"basis": {"boot": {"grade": "guessed"}}}, "'guessed' is none of asserted"),
        (UncertainCall, {**encode(IN_DOUBT), "effect": {"running": "many"}}, "UncertainCall.effect.running"),
        (UncertainCall, {**encode(IN_DOUBT), "effect": {"mood": 1}}, "mood"),
    ],
)
def test_what_does_not_fit_its_type_is_a_value_error_that_says_where(kind: Any, data: Any, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        decode(kind, data)


def test_the_forms_of_values() -> None:
    assert encode(Grade.DECLARED) == "asserted"
    assert encode(frozenset({"b", "a"})) == ["a", "b"]
    assert decode(Transition, {**encode(EDGE), "at_s": 1}).at_s == 1.0
    effect = decode(UncertainCall, encode(replace(IN_DOUBT, effect={Fact.CONTENTS: {"weights": GARBAGE}}))).effect
    assert effect == {Fact.CONTENTS: {"weights": GARBAGE}}
    assert hash(decode(Verdict, encode(Refuted(figures={"by": {"a": [1, {"b": 2}]}}))))
    both = FleetError.of("2 of 2 engines", [ValueError("one"), ValueError("two")])
    assert [each["message"] for each in encode_error(both)["exceptions"]] == ["one", "two"]


# attaching and closing


def another_process(engine: Engine, path: Path, record: Record) -> Engine:
    """An engine over the same server, in a process that finds this record in its store."""
    Store(path).save(engine.adapter.url, record)
    return Engine(engine.adapter, policy=engine.policy, probe=engine.probe, store=Store(path))


async def test_what_it_reports_mapped_again_is_nobodys_to_hand_over(tmp_path: Path) -> None:
    engine = await engine_in(State.RELEASED)
    engine.adapter.reports_tags = True
    engine.adapter.engine.apply("restore", {"tags": ["weights", "kv_cache"]})
    again = await another_process(engine, tmp_path / "s", engine.record).connect()
    assert again.state is State.DRAINED
    assert "memory_returned" not in again.conditions


@pytest.mark.parametrize("returns", [True, False])
async def test_nothing_is_believed_of_it_before_the_barrier_has_returned(tmp_path: Path, returns: bool) -> None:
    engine = await engine_in(State.DRAINED)
    again = another_process(engine, tmp_path / "s", replace(engine.record, state=State.RELEASING))
    engine.adapter.always("barrier", None if returns else LOST)
    await again.connect()
    assert again.state is (State.DRAINED if returns else State.FAILED)
    assert again.record.uncertain.needs_barrier is not returns


async def test_one_met_closed_is_taken_for_nothing_that_it_launched_with() -> None:
    admits, closed = (Observation(boot="boot-1", alive=True, admission=each) for each in ("open", "closed"))  # type: ignore[arg-type]
    open_, shut = (knowledge.first_seen(Record(), seen, capabilities()) for seen in (admits, closed))
    assert open_.facts.mapped == {"weights": True, "kv_cache": True}
    assert shut.facts.mapped == {"weights": None, "kv_cache": None}
    assert open_.calibration.attached_boot == shut.calibration.attached_boot == "boot-1"
    trainers = knowledge.first_seen(Record(), closed, capabilities(has_admission=False))
    assert trainers.facts.mapped == {"weights": True, "kv_cache": True}, "it never admits any"


@pytest.mark.parametrize(
    ("modes", "sent_mode"),
    [
        pytest.param(  # abort and wait hang one that is frozen
            ("abort", "wait", "keep", "freeze"), "keep", marks=pytest.mark.provokes_violation("order")
        ),
        (("wait_safely", "abort"), None),
        (("freeze", "abort"), None),
    ],
)
async def test_one_that_may_be_paused_already_is_closed_by_a_mode_that_cannot_hang_it(
    modes: tuple[str, ...], sent_mode: str | None
) -> None:
    traits = {**PAUSE_MODES, "wait_safely": PauseTraits(drains=True, needs_router=True)}
    engine = await serving(caps={"pause": {mode: traits[mode] for mode in modes}})  # type: ignore[index]
    engine.adapter.reports_admission = False
    put(engine, state=State.FAILED)
    believing(engine, admission=None, paused_by=None)
    engine.adapter.journal.clear()
    await engine.recover()
    sent_modes = [
        entry.args["mode"] for entry in engine.adapter.journal if (entry.kind, entry.name) == ("call", "pause")
    ]
    assert sent_modes == ([] if sent_mode is None else [sent_mode])


def test_an_error_calls_no_device_taken_that_is_free() -> None:
    record = Record(state=State.RELEASED, facts=BEGUN)
    assert _note(record, RestoreWeights(), "") == ""
    assert _note(record.with_condition("memory_returned", Proved(grade=Grade.MEASURED)), RestoreWeights(), "") == ""
    note = _note(record.with_condition("memory_returned", Refuted()), RestoreWeights(), "")
    assert note == ", memory_returned is refuted: its device is not free for others"


# moves


async def test_one_that_is_gone_is_told_of_once_by_the_move_that_brings_the_others_back() -> None:
    fleet, _ = await fleet_of("a", "b")
    fleet["a"].adapter.script("release", DIE)
    with pytest.raises(FleetError) as failed:
        await fleet.offload(weights=V1, deadline_s=0.5)
    assert states(fleet) == {"a": "gone", "b": "serving"}
    assert [error.engine for error in failed.value.exceptions] == ["a"]


async def test_a_group_is_not_drained_after_one_that_could_not_be() -> None:
    groups = {"decode": Group(drain_after=("prefill",)), "prefill": Group()}
    fleet, journal = await fleet_of("decode/d", "prefill/p", groups=groups, policy=replace(QUICK, on_failure="hold"))
    fleet["p"].adapter.engine.stubborn = -1
    with pytest.raises(FleetError):
        await fleet.offload(weights=V1, deadline_s=0.3)
    assert states(fleet) == {"d": "paused", "p": "paused"}
    assert not [entry for entry in journal if entry.engine == "d" and entry.kind == "idle"]


async def test_a_step_that_fails_names_who_had_failed_before_it() -> None:
    fleet, _ = await fleet_of("a", "b")
    await fleet.offload(weights=V1)
    fleet["a"].adapter.script("load", REJECTED)

    def runs_out_of_memory() -> None:
        raise MemoryError

    with pytest.raises(MemoryError) as failed:
        await fleet.onload(between=runs_out_of_memory)
    notes = "\n".join(failed.value.__notes__)
    assert "the engines stay where they are" in notes
    assert "b weights_restored" in notes
    assert "1 of 2 engines: a: update_weights failed" in notes


# what is desired

PUSHED = Pushed(None, "v2", name="a push")


def test_what_is_kept_is_the_version_that_is_there() -> None:
    record = Record(facts=facts(contents={"weights": Contents("loaded", "v1")}), desired=Desired(version="v0"))
    assert set_desired(record, Kept(), capabilities()).desired == Desired(Kept(), "v1")
    assert set_desired(record, V2, capabilities()).desired == Desired(V2, "v2")


def test_after_a_push_there_is_nothing_to_roll_back_to() -> None:
    record = was_loaded(Record(), V1)
    assert record.desired.rollback_source == V1
    assert was_loaded(record, PUSHED).desired.rollback_source is None


def test_what_was_desired_comes_back_where_nothing_was_touched() -> None:
    before = Record(facts=BEGUN, desired=Desired(V1, "v1"))
    now = replace(before, desired=Desired(V2, "v2", V1))
    assert desired_unless_touched(now, before).desired == Desired(V1, "v1", V1)
    for touched in ({"boot": "boot-2"}, {"mapped": {"weights": None}}, {"contents": {"weights": None}}):
        moved = replace(now, facts=replace(BEGUN, **touched))
        assert desired_unless_touched(moved, before) is moved


def test_what_a_released_engine_comes_back_with() -> None:
    record = Record(state=State.RELEASED, desired=Desired(V2, "v2", V1))
    assert source_after_release(record, None) == V2
    assert source_after_release(record, Kept()) == Kept()
    assert source_after_release(replace(record, state=State.DRAINED), None) == V1


def test_only_a_push_that_is_missing_needs_the_trainer() -> None:
    record = Record(facts=facts(contents={"weights": GARBAGE}), desired=Desired(PUSHED, "v2"))
    assert needs_trainer(record, capabilities())
    assert not needs_trainer(replace(record, desired=Desired(V2, "v2")), capabilities())
    loaded = facts(contents={"weights": Contents("loaded", "v2")})
    assert not needs_trainer(replace(record, facts=loaded), capabilities())


def test_a_phase_that_took_no_time_has_ended_too() -> None:
    assert MoveEvent("offload", (), duration_s=0.0).ended
    assert not MoveEvent("offload", ()).ended
