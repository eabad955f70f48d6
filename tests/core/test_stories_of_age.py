"""Age: what somebody else may have changed is unknown, bytes decide or nothing does, and moves verify beliefs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rig import V1, engine_in, facts, fleet_of, sent, serve_again, serving

from lifecycle import (
    Engine,
    Fact,
    Facts,
    FleetError,
    Grade,
    InvalidTransition,
    OperationFailed,
    Policy,
    Proved,
    Refuted,
    State,
    TagSpec,
    Unmeasurable,
)
from lifecycle.core.deadline import Deadline
from lifecycle.core.facts import Admission, SizeGrade
from lifecycle.core.observation import Observation
from lifecycle.core.readings import Reading
from lifecycle.core.record import Calibration, Record
from lifecycle.engine.reconcile import reconcile
from lifecycle.rules import knowledge
from lifecycle.rules.decision import ReadBytes, Stay, decide
from lifecycle.rules.mapping import mapping_from_resident_bytes, undecided
from lifecycle.store.codec import from_text, to_text
from lifecycle.store.sqlite import Store
from lifecycle.testing import KV_CACHE, WEIGHTS, capabilities

MIB, GIB = 1 << 20, 1 << 30
UNKNOWN = facts(mapped={"weights": None, "kv_cache": None})
#: A threshold under which the level alone tells nothing.
SMALL = Policy(residual_threshold_gib=0.05)


def reading(mib: float) -> Reading:
    return Reading({"gpu-0": int(mib * MIB)}, (), "a test")


def sized(weights: int, kv_cache: int, grade: SizeGrade = SizeGrade.TENSORS) -> Any:
    return capabilities(
        TagSpec("weights", "weights", "discarded", weights * MIB, grade),
        TagSpec("kv_cache", "kv", "discarded", kv_cache * MIB, grade),
    )


# which tags are mapped


@pytest.mark.parametrize(
    ("sizes", "full", "base", "now", "mapped"),
    [
        ((229, 160), 1937, None, 1937, {"weights": True, "kv_cache": True}),
        ((229, 160), 1937, None, 2100, {"weights": True, "kv_cache": True}),  # it grew
        ((229, 160), 1937, None, 1548, {"weights": False, "kv_cache": False}),  # as measured on a real server
        ((229, 160), 1937, None, 1708, {"weights": False, "kv_cache": True}),
        ((229, 160), 1937, None, 1777, {"weights": True, "kv_cache": False}),
        ((229, 160), 1937, None, 1740, {}),  # the size of no choice
        ((160, 160), 1937, None, 1777, {}),  # of two
        ((160, 160), 1937, None, 1617, {"weights": False, "kv_cache": False}),
        ((283, 160), 1937, None, 1708, {}),  # 283 MiB are reported of 229
        ((283, 160), 1937, 1548, 1708, {"weights": False, "kv_cache": True}),  # a release showed by how much it is off
        ((283, 160), 1937, 1548, 1777, {"weights": True, "kv_cache": False}),
        ((283, 160), 1937, 1548, 1548, {"weights": False, "kv_cache": False}),
        ((283, 160), 1937, 1548, 1930, {"weights": True, "kv_cache": True}),
        # The KV cache was touched after the reading with every tag mapped, and the weights were released: as much as
        # before is resident, and too little beside what a proved release left.
        ((229, 229), 1777, 1548, 1777, {}),
        ((4096, 1), 6000, None, 6000, {}),  # whether the KV cache is mapped cannot be seen
        ((4096, 1), 6000, None, 1904, {}),
    ],
)
def test_the_bytes_that_are_missing_decide(
    sizes: tuple[int, int], full: int, base: int | None, now: int, mapped: dict[str, bool]
) -> None:
    known = Calibration(reading_all_mapped=reading(full), reading_all_released=None if base is None else reading(base))
    assert mapping_from_resident_bytes(UNKNOWN, reading(now), sized(*sizes), known, SMALL) == mapped


def test_why_bytes_do_not_decide_is_said_with_figures() -> None:
    record = Record(facts=UNKNOWN, calibration=Calibration(reading_all_mapped=reading(1937)))
    open_ = undecided(record, reading(1777), sized(160, 160), SMALL)
    assert open_.why == (
        "160 MiB are missing of what it held with every tag mapped, which fits kv_cache released or weights released "
        "(kv_cache 160 MiB, weights 160 MiB)"
    )
    step = decide(record, sized(160, 160), tried=frozenset({ReadBytes}), may_close=True, undecided=open_)
    assert isinstance(step, Stay)
    assert step.reason == (
        "released or weights_restored: whether kv_cache, weights is mapped is not known: "
        f"{open_.why}; what would decide: a report of which tags are released"
    )
    nothing = undecided(record, reading(1740), sized(229, 160), SMALL)
    assert "197 MiB are missing" in nothing.why
    assert "is the size of no choice of tags (kv_cache 160 MiB, weights 229 MiB)" in nothing.why
    unread = undecided(replace(record, calibration=Calibration()), reading(1740), sized(229, 160), SMALL)
    assert "what it held with every tag mapped was not read" in unread.why


@pytest.mark.parametrize(
    ("known", "says"),
    [
        (replace(facts(), admission=None), "drained: whether it admits requests is not known; what would decide: an "),
        (facts(admission="open"), "no state: it admits requests, and is not known to be worth serving"),
        (
            facts(mapped={"weights": True, "kv_cache": False}, running=None),
            "weights_restored: whether requests run is not known; what would decide: that it is idle",
        ),
        (
            facts(mapped={"weights": True, "kv_cache": False}, running=2),
            "no state: requests run; what would decide: that it is idle",
        ),
    ],
)
def test_a_reason_to_stay_names_the_states_and_what_would_decide(known: Facts, says: str) -> None:
    record = Record(facts=replace(known, contents={"weights": None}))
    step = decide(record, capabilities(), tried=frozenset({ReadBytes}), may_close=False)
    assert isinstance(step, Stay)
    assert step.reason.startswith(says), step.reason


# somebody else acted


@pytest.mark.parametrize(("before", "now"), [("open", "closed"), ("closed", "open")])
@pytest.mark.parametrize("reported", [None, frozenset[str]()])
def test_an_admission_that_no_call_explains_leaves_memory_unknown(
    before: Admission, now: Admission, reported: frozenset[str] | None
) -> None:
    record = Record(facts=facts(admission=before)).with_condition("memory_returned", Proved(grade=Grade.MEASURED))
    seen = Observation(boot="boot-1", admission=now, released_tags=reported)
    after = knowledge.after_observation(record, seen, capabilities())
    assert set(after.facts.mapped.values()) == {None if reported is None else True}
    assert after.facts.contents == {"weights": None}
    assert after.facts.cache_fresh is None
    assert after.conditions == {}


def test_a_call_of_ours_in_doubt_explains_the_admission() -> None:
    record = Record(facts=replace(facts(), admission=None))
    for now in ("open", "closed"):
        seen = Observation(boot="boot-1", admission=now)
        assert knowledge.after_observation(record, seen, capabilities()).facts.mapped == facts().mapped


async def test_who_paused_it_and_released_nothing_is_found_out_by_its_bytes() -> None:
    engine = await serving()
    engine.adapter.engine.apply("pause", {"mode": "abort"})
    assert await engine.verify() is State.DRAINED
    assert engine.facts.mapped == {"weights": True, "kv_cache": True}
    assert engine.facts.grades[Fact.MAPPED] is Grade.MEASURED
    assert engine.facts.contents == {"weights": None}, "bytes tell nothing of contents"
    await serve_again(engine)


async def test_who_closed_it_and_released_a_tag_that_cannot_be_told_is_not_drained() -> None:
    twin = replace(KV_CACHE, expected_bytes=WEIGHTS.expected_bytes)
    engine = await serving("e", WEIGHTS, twin)
    model = engine.adapter.engine
    model.apply("pause", {"mode": "abort"})
    model.apply("release", {"tags": ["kv_cache"]})
    found = await reconcile_of(engine)
    assert found.state is State.FAILED
    assert found.reason.startswith("released or weights_restored: ")
    engine.adapter.reports_tags = True
    assert (await engine.recover()).state is State.WEIGHTS_RESTORED, "a report decides"
    await serve_again(engine)


async def reconcile_of(engine: Engine) -> Any:
    engine._session.go("contradicted", reason="a test")
    return await reconcile(engine._session, Deadline(1.0))


async def test_an_engine_that_does_not_answer_says_so() -> None:
    engine = await serving()
    engine.adapter.engine.reachable = False
    assert (await reconcile_of(engine)).reason == "it does not answer (no answer)"


# what is remembered


async def test_what_another_process_knew_of_a_router_is_not_believed(tmp_path: Path) -> None:
    engine = await engine_in(State.DRAINED)
    engine.router_confirmed(False, Proved(grade=Grade.REPORTED), Grade.REPORTED)
    engine._session.store = Store(tmp_path / "engines")
    engine._session.store.save(engine.adapter.url, engine.record)
    again = await another(engine, tmp_path)
    assert again.facts.routed is None
    assert Fact.ROUTED not in again.facts.basis
    assert again.facts.basis[Fact.MAPPED].cause in ("remembered", "residual")
    again._session.store.close()
    engine._session.store.close()


async def another(engine: Engine, path: Path) -> Engine:
    again = Engine(engine.adapter, name="e", policy=engine.policy, probe=engine.probe, store=Store(path / "engines"))
    return await again.connect()


async def test_times_of_a_monotonic_clock_are_not_kept() -> None:
    engine = await engine_in(State.RELEASED)
    condition = engine.conditions["memory_returned"]
    assert condition.at_s is not None
    text = to_text(engine.record)
    assert "read_at_s" not in text
    again = from_text(text)
    assert again == engine.record
    assert again.conditions["memory_returned"].at_s is None
    row = json.loads(text)
    row["record"]["conditions"]["memory_returned"]["at_s"] = 12.5  # as an earlier version wrote it
    assert from_text(json.dumps(row)).conditions["memory_returned"].at_s is None


@pytest.mark.parametrize("command", ["resume", "update", "release"])
async def test_a_row_whose_admission_is_as_it_was_lets_nothing_pass_that_bytes_deny(
    tmp_path: Path, command: str
) -> None:
    engine = await engine_in(State.DRAINED)
    store = Store(tmp_path / "engines")
    store.save(engine.adapter.url, engine.record)
    store.close()
    again = await another(engine, tmp_path)
    assert again.state is State.DRAINED
    engine.adapter.engine.apply("release", {"tags": ["weights", "kv_cache"]})
    engine.adapter.journal.clear()
    asked = {"resume": again.resume, "update": lambda: again.update_weights(V1, force=True)}
    asked["release"] = lambda: again.release(weights=V1)
    with pytest.raises(OperationFailed, match=r"externally modified.* settled to released"):
        await asked[command]()
    assert sent(again) == []
    assert again.state is State.RELEASED
    assert not again.memory_is_free, "nobody has proved that it came back"
    await serve_again(again)
    assert engine.adapter.engine.deaths == []
    again._session.store.close()


async def test_no_second_release_of_what_was_measured_is_sent_where_its_bytes_are_gone() -> None:
    engine = await engine_in(State.KV_RESTORED)
    assert engine.facts.grades[Fact.MAPPED] > Grade.ASSERTED
    engine.adapter.engine.apply("release", {"tags": ["weights", "kv_cache"]})
    with pytest.raises(OperationFailed, match="512 MiB are resident, and its mapped tags hold 12288 MiB"):
        await engine.release(weights=V1)
    assert engine.state is State.RELEASED
    assert engine.adapter.engine.deaths == []


async def test_a_process_that_was_replaced_is_not_measured_by_the_one_before() -> None:
    engine = await engine_in(State.RELEASED)
    assert engine.record.calibration.reading_all_mapped is not None
    assert engine.record.calibration.reading_all_released is not None
    engine.adapter.engine.restart()
    await engine.recover()
    assert engine.record.calibration.reading_all_released is None


# verifying


async def test_memory_that_came_back_is_measured_and_refused_with_figures() -> None:
    fleet, journal = await fleet_of("a", "b")
    await fleet.offload(weights=V1)
    fleet["a"].adapter.engine.leaked_bytes = 3 * GIB
    journal.clear()
    with pytest.raises(FleetError, match=r"memory_returned is refuted: 3584 MiB resident now exceeds 3072 MiB allowed"):
        await fleet.offload(weights=V1)
    assert journal.calls() == []
    verdict = fleet["a"].conditions["memory_returned"].verdict
    assert isinstance(verdict, Refuted)
    assert verdict.figures["returned_bytes"] == verdict.figures["expected_bytes"] == 12 * GIB
    assert fleet["b"].memory_is_free
    fleet["a"].adapter.engine.leaked_bytes = 0
    await fleet.offload(weights=V1)
    assert fleet["a"].memory_is_free


async def test_a_reading_that_fails_lets_no_trainer_in() -> None:
    fleet, _ = await fleet_of("a")
    await fleet.offload(weights=V1)
    fleet["a"].adapter.probe.always = Unmeasurable(reason="the driver is gone")
    with pytest.raises(FleetError, match="cannot be read now: the driver is gone"):
        await fleet.offload(weights=V1, deadline_s=0.2)
    assert not fleet["a"].memory_is_free
    fleet["a"].adapter.probe.always = None
    await fleet.offload(weights=V1)


async def test_a_release_of_one_that_is_believed_released_says_where_it_is_found() -> None:
    engine = await engine_in(State.RELEASED)
    engine.adapter.engine.apply("restore", {"tags": ["weights", "kv_cache"]})
    engine.adapter.journal.clear()
    await engine.release(weights=V1)
    assert sent(engine) == ["release(kv_cache)", "release(weights)"], "it was found drained"
    with pytest.raises(InvalidTransition, match="release refused in state released"):
        await engine.release(weights=V1)


async def test_verifying_interferes_with_no_command() -> None:
    engine = await engine_in(State.DRAINED)
    found: list[State] = []

    async def verified() -> None:
        found.append(await engine.verify())

    send = engine.adapter.send

    async def send_while_verified(call: Any, *, deadline_s: float) -> Any:
        await verified()
        return await send(call, deadline_s=deadline_s)

    engine.adapter.send = send_while_verified
    await engine.release(weights=V1)
    assert set(found) == {State.RELEASING}
    assert engine.memory_is_free
