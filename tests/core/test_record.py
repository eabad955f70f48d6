"""A Record, and every value in it, survives pickle, deepcopy and JSON both ways, and can be hashed."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import V1, engine_in, serving
from test_layering import EVERY_ERROR

from lifecycle import (
    Contents,
    Drain,
    Fact,
    Facts,
    FromDisk,
    Grade,
    GuardRefused,
    Kept,
    NotApplicable,
    Pause,
    Pending,
    Proved,
    Pushed,
    Refuted,
    Release,
    RestoreKV,
    RestoreWeights,
    Resume,
    State,
    Transition,
    Unmeasurable,
    UpdateWeights,
    Verdict,
)
from lifecycle.core.commands import COMMANDS, Command
from lifecycle.core.encoding import decode, encode, encode_error
from lifecycle.core.facts import Basis
from lifecycle.core.frozen import FrozenMap
from lifecycle.core.json_text import JsonWriter
from lifecycle.core.readings import Holder, Reading
from lifecycle.core.record import Calibration, Desired, Record, Uncertain, UncertainCall
from lifecycle.core.sources import Source
from lifecycle.core.verdicts import Condition
from lifecycle.testing import LATE

TAGS = st.sampled_from(["weights", "kv_cache", "draft", "cuda_graph"])
TEXT = st.text(max_size=12)
SIZES = st.integers(0, 1 << 50)
MODES = st.sampled_from(["abort", "wait", "keep", "freeze"])
CONTENTS = st.builds(
    Contents, st.sampled_from(["launched", "loaded", "kept", "garbage"]), st.none() | st.sampled_from(["v1", "v2"])
)
FIGURES = st.dictionaries(
    TEXT, st.recursive(SIZES | TEXT | st.booleans() | st.none(), lambda inner: st.lists(inner, max_size=3))
)
MAPPED = st.dictionaries(TAGS, st.none() | st.booleans())
HELD = st.dictionaries(TAGS, st.none() | CONTENTS)
BASIS = st.builds(Basis, st.sampled_from(Grade), TEXT, st.none() | st.floats(0, 1e9))
FACTS = st.builds(
    Facts,
    boot=st.none() | TEXT,
    admission=st.sampled_from(["open", "closed", None]),
    paused_by=st.none() | MODES,
    running=st.none() | SIZES,
    mapped=MAPPED,
    contents=HELD,
    cache_fresh=st.none() | st.booleans(),
    routed=st.none() | st.booleans(),
    basis=st.dictionaries(st.sampled_from(Fact), BASIS),
)
VERDICTS = (
    st.builds(Proved, reason=TEXT, figures=FIGURES, grade=st.sampled_from(Grade))
    | st.builds(Refuted, reason=TEXT, figures=FIGURES, denied=st.frozensets(TAGS))
    | st.sampled_from([Pending, Unmeasurable, NotApplicable]).flatmap(
        lambda kind: st.builds(kind, reason=TEXT, figures=FIGURES)
    )
)
CHECKSUMS = st.none() | TEXT | st.dictionaries(st.sampled_from(["target", "draft"]), TEXT)
FROM_DISK = st.builds(FromDisk, TEXT, TEXT, CHECKSUMS, FIGURES)


async def push_nothing(engines: Any) -> None:
    """A push that sends nothing."""


SOURCES = st.builds(Kept) | FROM_DISK | st.builds(Pushed, st.sampled_from([push_nothing, None]), TEXT, CHECKSUMS)
COMMANDS_DRAWN = (
    st.builds(Pause, MODES)
    | st.sampled_from([Drain(), RestoreWeights(), RestoreKV(), Resume()])
    | st.builds(Release, st.none() | st.frozensets(TAGS), st.none() | SOURCES)
    | st.builds(UpdateWeights, SOURCES, st.booleans())
)
READINGS = st.builds(
    Reading,
    st.dictionaries(TEXT, SIZES),
    st.lists(st.builds(Holder, SIZES, TEXT, SIZES, TEXT), max_size=2).map(tuple),
    TEXT,
    st.dictionaries(TEXT, SIZES),
)
EFFECTS = st.fixed_dictionaries(
    {}, optional={Fact.MAPPED: MAPPED, Fact.CONTENTS: HELD, Fact.ADMISSION: st.just("closed"), Fact.RUNNING: st.none()}
)
UNCERTAIN = st.builds(
    Uncertain,
    st.booleans(),
    st.none() | st.builds(UncertainCall, EFFECTS, FACTS, FACTS, st.frozensets(TAGS), st.none() | READINGS),
    st.booleans(),
)
CALIBRATIONS = st.builds(
    Calibration,
    st.none() | TEXT,
    st.dictionaries(st.frozensets(TAGS), SIZES, max_size=3),
    st.none() | READINGS,
    st.dictionaries(TEXT, TEXT),
    st.dictionaries(TEXT, st.lists(SIZES, max_size=4).map(tuple)),
    st.dictionaries(st.tuples(TEXT, st.frozensets(TAGS)), st.lists(SIZES, max_size=4).map(tuple), max_size=2),
    st.lists(TEXT, max_size=3).map(tuple),
)
RECORDS = st.builds(
    Record,
    st.sampled_from(State),
    FACTS,
    st.dictionaries(TEXT, st.builds(Condition, VERDICTS, st.floats(0, 1e9)), max_size=3),
    st.builds(Desired, st.none() | SOURCES, st.none() | TEXT, st.none() | FROM_DISK),
    UNCERTAIN,
    CALIBRATIONS,
)
TRANSITIONS = st.builds(
    Transition,
    engine=TEXT,
    group=TEXT,
    trigger=TEXT,
    source=st.sampled_from(State),
    dest=st.sampled_from(State),
    command=TEXT,
    verdicts=st.dictionaries(TEXT, VERDICTS, max_size=2),
    duration_s=st.floats(0, 1e6),
    reason=TEXT,
    at_s=st.floats(0, 1e9),
)


#: What writes values at once writes what `encode` has.
TEXTS = JsonWriter()


def survives(value: Any, kind: Any) -> None:
    """The value comes back equal, with an equal hash, by each of the three ways."""
    in_json = json.loads(json.dumps(encode(value)))
    assert TEXTS.text(value) == json.dumps(encode(value), separators=(",", ":"))
    for again in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value), decode(kind, in_json)):
        assert again == value
        assert hash(again) == hash(value)
        assert encode(again) == encode(value)  # also what two equal values may differ in: times, callbacks' names


@settings(max_examples=40, deadline=None)
@given(RECORDS)
def test_a_record_survives(record: Record) -> None:
    survives(record, Record)


@settings(max_examples=25, deadline=None)
@given(FACTS, VERDICTS, TRANSITIONS, COMMANDS_DRAWN, SOURCES)
def test_every_value_survives_by_itself(
    facts: Facts, verdict: Verdict, transition: Transition, command: Command, source: Source
) -> None:
    survives(facts, Facts)
    survives(verdict, Verdict)
    survives(transition, Transition)
    survives(command, Command)
    survives(source, Source)


async def test_the_record_of_an_engine_survives_in_every_state_of_the_ring() -> None:
    for state in (State.SERVING, State.PAUSED, State.DRAINED, State.RELEASED, State.WEIGHTS_RESTORED):
        engine = await engine_in(state)
        survives(engine.record, Record)
    engine.adapter.script("restore", LATE)
    with pytest.raises(Exception, match="got no answer"):
        await engine.restore_kv(deadline_s=0.1) if engine.weights_refusal() is None else await _restored(engine)
    survives(engine.record, Record)


async def _restored(engine: Any) -> None:
    await engine.update_weights(V1)
    await engine.restore_kv(deadline_s=0.1)


def test_a_push_leaves_its_callback_behind_and_is_bound_again() -> None:
    source = Pushed(push_nothing, "v7")
    again = decode(Pushed, encode(source))
    assert again.push is None
    assert (again.name, again.version) == ("push_nothing", "v7")
    assert again.bind(push_nothing).push is push_nothing
    assert again.bind(push_nothing) == source
    assert pickle.loads(pickle.dumps(source)).push is None


async def test_a_push_without_its_callback_is_refused_before_anything_is_sent() -> None:
    engine = await serving()
    await engine.pause()
    await engine.drain()
    engine.adapter.journal.clear()
    with pytest.raises(GuardRefused, match=r"source_ready: .*source\.bind\(callback\)"):
        await engine.update_weights(decode(Pushed, encode(Pushed(push_nothing, "v7"))))
    assert engine.adapter.journal.calls() == []


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: type(error).__name__)
def test_every_error_goes_to_json(error: BaseException) -> None:
    report = json.loads(json.dumps(encode_error(error)))
    assert report["type"] == type(error).__name__
    assert report["message"] == str(error)
    assert set(vars(error)) - {"__notes__"} <= set(report)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"state": "asleep"}, "state"),
        ({"facts": 3}, "facts"),
        ({"facts": {"mapped": {"weights": "yes"}}}, r"facts\.mapped\[weights\]"),
        ({"conditions": {"x": {"verdict": {"type": "Guess"}}}}, "Guess"),
        ({"uncertain": {"needs_barrier": "no"}}, "needs_barrier"),
        ({"calibration": {"bytes_by_tags": [["weights"]]}}, "bytes_by_tags"),
        ({"desired": {"source": {"type": "FromDisk", "path": "/m"}}}, "version"),
        ({"facts": {"basis": {"mapped": {"grade": "certain"}}}}, "grade"),
    ],
)
def test_what_is_no_record_is_a_value_error_that_says_where(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        decode(Record, {**encode(Record()), **change})


def test_a_frozen_mapping_refuses_every_change() -> None:
    frozen = FrozenMap(a=1)
    for change in (
        lambda: frozen.__setitem__("a", 2),
        lambda: frozen.__delitem__("a"),
        frozen.clear,
        frozen.popitem,
        lambda: frozen.pop("a"),
        lambda: frozen.update(a=2),
        lambda: frozen.setdefault("b", 1),
        lambda: frozen.__ior__({"a": 2}),
    ):
        with pytest.raises(TypeError, match="cannot be changed"):
            change()
    assert frozen == {"a": 1}
    assert json.dumps(frozen) == '{"a": 1}'


def test_every_command_is_drawn_here() -> None:
    drawn = {Pause, Drain, RestoreWeights, RestoreKV, Resume, Release, UpdateWeights}
    assert drawn == set(COMMANDS)


def test_what_json_cannot_hold_has_no_text() -> None:
    with pytest.raises(TypeError, match="object has no form in JSON"):
        TEXTS.text({"x": [object()]})


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e300, -0.0, True, "ü\n", Grade.DECLARED, {1: {2: "x"}}])
def test_odd_values_are_written_as_json_writes_what_they_are_encoded_as(value: Any) -> None:
    assert TEXTS.text(value) == json.dumps(encode(value), separators=(",", ":"))
