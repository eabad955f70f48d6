"""Every proof: each kind of verdict, with its figures; and the boundaries of what counts as returned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rig import V1, context_of, facts

from lifecycle import (
    Contents,
    Fact,
    FromDisk,
    Grade,
    NotApplicable,
    Observation,
    Pause,
    Pending,
    Policy,
    Proved,
    Refuted,
    Release,
    RestoreWeights,
    TagSpec,
    Unmeasurable,
    UpdateWeights,
)
from lifecycle.core.readings import Holder, Reading
from lifecycle.rules import proofs as p
from lifecycle.rules.evidence import Context, Evidence
from lifecycle.rules.table import OPERATIONS
from lifecycle.testing import KV_CACHE, WEIGHTS, capabilities

MIB = 1 << 20
GIB = 1 << 30
POLICY = Policy(residual_threshold_gib=3.0)
BLIND = Unmeasurable(reason="no process of the engine is left to measure")


def reading(*held: int, pids: int = 1) -> Reading:
    """A reading of so many devices, in bytes."""
    devices = {f"gpu-{index}": size for index, size in enumerate(held)}
    return Reading(devices, tuple(Holder(40 + n, "gpu-0", held[0], "engine") for n in range(pids)), "a test")


def released(before: Any, after: Any, *tags: str, caps: Any = None, mapped: Any = None, **changes: Any) -> Context:
    """After a release of these tags (default: both), with these readings before and after."""
    targets = frozenset(tags or ("weights", "kv_cache"))
    return context_of(
        Release(targets, V1),
        facts(mapped=mapped or {tag: tag not in targets for tag in ("weights", "kv_cache")}),
        caps or capabilities(),
        changes.pop("policy", POLICY),
        targets=targets,
        baseline=Evidence(residual=before),
        evidence=Evidence(residual=after),
        **changes,
    )


def asked(command: Any = None, *, caps: Any = None, known: Any = None, **evidence: Any) -> Context:
    """After any other command, with this evidence."""
    seen = {name: evidence.pop(name) for name in list(evidence) if name in Observation.__slots__}
    return context_of(
        command or Pause(),
        facts(**(known or {})),
        caps or capabilities(),
        POLICY,
        evidence=Evidence(observed=Observation(**seen), **evidence),
    )


# memory_returned: 4 GiB of weights, 8 GiB of KV cache, 12.5 GiB resident before

assert (WEIGHTS.expected_bytes, KV_CACHE.expected_bytes) == (4 * GIB, 8 * GIB)
FULL = reading(12 * GIB + GIB // 2)


def test_memory_that_came_back_is_proved_with_figures() -> None:
    verdict = p.memory_returned(released(FULL, reading(GIB // 2)))
    assert isinstance(verdict, Proved)
    assert verdict.grade is Grade.MEASURED
    assert verdict.figures == {
        "returned_bytes": 12 * GIB,
        "expected_bytes": 12 * GIB,
        "resident_bytes": GIB // 2,
        "baseline_bytes": 12 * GIB + GIB // 2,
        "allowed_bytes": 3 * GIB,
        "devices": 1,
        "pids": (40,),
    }


@pytest.mark.parametrize(("over", "kind"), [(0, Proved), (1, Pending)])
def test_the_threshold_itself_passes_and_one_byte_above_does_not(over: int, kind: type) -> None:
    verdict = p.memory_returned(released(reading(15 * GIB), reading(3 * GIB + over)))
    assert type(verdict) is kind
    if over:
        assert "3072 MiB resident exceeds 3072 MiB allowed" in verdict.reason


@pytest.mark.parametrize(("short", "kind"), [(0, Proved), (1, Pending)])
def test_nine_tenths_of_the_expectation_pass_and_one_byte_less_does_not(short: int, kind: type) -> None:
    sized = capabilities(
        TagSpec("weights", "weights", "kept", 4000 * MIB), TagSpec("kv_cache", "kv", "kept", 6000 * MIB)
    )
    verdict = p.memory_returned(released(reading(10_000 * MIB), reading(1000 * MIB + short), caps=sized))
    assert type(verdict) is kind
    assert verdict.figures["returned_bytes"] == 9000 * MIB - short
    assert verdict.figures["expected_bytes"] == 10_000 * MIB


def test_little_resident_is_not_enough_where_too_little_came_back() -> None:
    verdict = p.memory_returned(released(reading(3 * GIB), reading(2 * GIB)))
    assert isinstance(verdict, Pending)
    assert "returned 1024 MiB of 12288 MiB expected" in verdict.reason
    assert "pid 40" in verdict.reason


def test_enough_returned_is_not_enough_where_too_much_is_resident() -> None:
    verdict = p.memory_returned(released(reading(20 * GIB), reading(8 * GIB)))
    assert isinstance(verdict, Pending)
    assert "resident exceeds" in verdict.reason


def test_the_device_that_returned_least_decides() -> None:
    full = reading(13 * GIB, 13 * GIB)
    caps = capabilities(ranks=2)
    assert isinstance(p.memory_returned(released(full, reading(GIB, GIB), caps=caps)), Proved)
    verdict = p.memory_returned(released(full, reading(GIB, 3 * GIB), caps=caps))
    assert isinstance(verdict, Pending)
    assert verdict.figures["returned_bytes"] == 10 * GIB


def test_the_device_that_holds_most_decides() -> None:
    caps = capabilities(ranks=2)
    verdict = p.memory_returned(released(reading(13 * GIB, 16 * GIB), reading(GIB, 4 * GIB), caps=caps))
    assert isinstance(verdict, Pending)
    assert verdict.figures["resident_bytes"] == 4 * GIB
    assert "4096 MiB resident exceeds 3072 MiB allowed" in verdict.reason


def test_a_device_that_is_not_seen_any_more_has_returned_all() -> None:
    caps = capabilities(ranks=2)
    verdict = p.memory_returned(released(reading(13 * GIB, 13 * GIB), reading(GIB), caps=caps))
    assert isinstance(verdict, Proved)
    assert (verdict.figures["expected_bytes"], verdict.figures["devices"]) == (12 * GIB, 2)


def test_ranks_that_share_a_device_are_expected_together() -> None:
    caps = capabilities(ranks=2)  # 2 x 12 GiB on one device
    assert isinstance(p.memory_returned(released(reading(25 * GIB), reading(GIB), caps=caps)), Proved)
    verdict = p.memory_returned(released(reading(25 * GIB), reading(13 * GIB), caps=caps))
    assert isinstance(verdict, Pending)
    assert verdict.figures["expected_bytes"] == 24 * GIB


def test_tags_that_stay_mapped_are_allowed_for() -> None:
    """KV alone: 8 GiB come back, and 4 GiB of weights may stay beside the threshold."""
    allowed = released(FULL, reading(4 * GIB + GIB // 2), "kv_cache")
    verdict = p.memory_returned(allowed)
    assert isinstance(verdict, Proved)
    assert verdict.figures["allowed_bytes"] == 7 * GIB
    over = p.memory_returned(released(reading(16 * GIB), reading(7 * GIB + 1), "kv_cache"))
    assert isinstance(over, Pending)


def test_tags_whose_mapping_is_in_doubt_are_allowed_for() -> None:
    verdict = p.memory_returned(
        released(FULL, reading(4 * GIB), "kv_cache", mapped={"weights": None, "kv_cache": False})
    )
    assert isinstance(verdict, Proved)


def test_what_is_too_little_to_see_is_unmeasurable() -> None:
    tiny = capabilities(TagSpec("weights", "weights", "kept", 30 * MIB), TagSpec("kv_cache", "kv", "kept", 33 * MIB))
    verdict = p.memory_returned(released(reading(600 * MIB), reading(500 * MIB), caps=tiny))
    assert isinstance(verdict, Unmeasurable)
    assert "63 MiB is too little to see beside 600 MiB resident" in verdict.reason


def test_a_twentieth_of_what_is_resident_is_too_little_to_see() -> None:
    caps = capabilities(TagSpec("weights", "weights", "kept", 100 * MIB), TagSpec("kv_cache", "kv", "kept", 100 * MIB))
    assert isinstance(p.memory_returned(released(reading(5000 * MIB), reading(10), caps=caps)), Unmeasurable)
    assert isinstance(p.memory_returned(released(reading(4000 * MIB), reading(10), caps=caps)), Proved)


def test_no_process_is_unmeasurable_never_nothing() -> None:
    for before, after in ((BLIND, reading(0)), (FULL, BLIND)):
        verdict = p.memory_returned(released(before, after))
        assert isinstance(verdict, Unmeasurable)
        assert "no process" in verdict.reason


def test_an_unknown_expectation_is_held_to_what_can_be_seen() -> None:
    caps = capabilities(TagSpec("weights", "weights", "kept"), TagSpec("kv_cache", "kv", "kept"))
    verdict = p.memory_returned(released(reading(2000 * MIB), reading(1900 * MIB), caps=caps))
    assert isinstance(verdict, Proved)
    assert verdict.figures["expected_bytes"] is None
    verdict = p.memory_returned(released(reading(2000 * MIB), reading(1901 * MIB), caps=caps))
    assert isinstance(verdict, Pending)
    both = frozenset({"weights", "kv_cache"})
    verdict = p.memory_returned(
        released(reading(2000 * MIB), reading(900 * MIB), caps=caps, learned={both: 1000 * MIB})
    )
    assert verdict.figures["expected_bytes"] == 1000 * MIB


def test_nothing_to_return_says_nothing() -> None:
    context = context_of(Release(), facts(), capabilities(), POLICY)
    assert isinstance(p.memory_returned(context), NotApplicable)
    assert isinstance(p.tags_unmapped(context), NotApplicable)


# the others


@pytest.mark.parametrize(
    ("context", "kind", "says"),
    [
        (released(FULL, reading(GIB)), Proved, "11776 MiB moved"),
        (released(FULL, FULL), Pending, "acknowledged, and the bytes are still held"),
        (released(FULL, reading(GIB), mapped={"weights": False, "kv_cache": True}), Refuted, "release of kv_cache"),
        (released(FULL, reading(GIB), mapped={"weights": None, "kv_cache": False}), Refuted, "release of weights"),
    ],
)
def test_tags_unmapped(context: Context, kind: type, says: str) -> None:
    verdict = p.tags_unmapped(context)
    assert type(verdict) is kind
    assert says in verdict.reason


def test_tags_unmapped_is_acknowledged_where_bytes_cannot_be_seen() -> None:
    verdict = p.tags_unmapped(released(BLIND, BLIND))
    assert isinstance(verdict, Proved)
    assert verdict.grade is Grade.ACKNOWLEDGED


@pytest.mark.parametrize(
    ("context", "kind", "grade"),
    [
        (asked(admission="closed"), Proved, Grade.REPORTED),
        (asked(), Proved, Grade.ACKNOWLEDGED),
        (asked(admission="open"), Refuted, None),
        (asked(known={"admission": "open"}, admission="closed"), Refuted, None),
        (asked(known={"admission": None}), Refuted, None),
        (asked(caps=capabilities(has_admission=False)), NotApplicable, None),
    ],
)
def test_admission_closed(context: Context, kind: type, grade: Grade | None) -> None:
    verdict = p.admission_closed(context)
    assert type(verdict) is kind
    assert getattr(verdict, "grade", None) == grade
    assert verdict.reason


@pytest.mark.parametrize(
    "evidence", [Proved(grade=Grade.REPORTED), Pending(reason="1 runs"), Unmeasurable(reason="frozen")]
)
def test_idle_and_answers_are_what_the_engine_showed(evidence: Any) -> None:
    assert p.idle(asked(idle=evidence)) is evidence
    assert p.answers(asked(answer=evidence)) is evidence


def restored(before: Any, after: Any, mapped: Any = None, **changes: Any) -> Context:
    return context_of(
        RestoreWeights(),
        facts(mapped=mapped or {"weights": True, "kv_cache": False}),
        capabilities(),
        POLICY,
        targets=changes.pop("targets", frozenset({"weights"})),
        baseline=Evidence(residual=before),
        evidence=Evidence(residual=after),
        **changes,
    )


@pytest.mark.parametrize(
    ("context", "kind", "says"),
    [
        (restored(reading(GIB // 2), reading(5 * GIB)), Proved, "4608 MiB moved"),
        (restored(reading(GIB // 2), reading(GIB)), Pending, "its bytes have not come back"),
        (restored(reading(GIB // 2), reading(5 * GIB), {"weights": None}), Refuted, "restore of weights"),
        (restored(reading(GIB), reading(GIB), targets=frozenset()), NotApplicable, "nothing was unmapped"),
        (restored(reading(5 * GIB), reading(5 * GIB), full=FULL), Proved, "resident, as before the release"),
        (restored(reading(GIB), reading(GIB), full=FULL), Pending, "have not come back"),
        (restored(BLIND, BLIND), Proved, "cannot be seen"),
    ],
)
def test_weights_mapped(context: Context, kind: type, says: str) -> None:
    verdict = p.weights_mapped(context)
    assert type(verdict) is kind
    assert says in verdict.reason


TINY = capabilities(TagSpec("weights", "weights", "kept", MIB), TagSpec("kv_cache", "kv", "kept", MIB))


def reporting(context: Context, *released: str) -> Context:
    """The same, of an engine of small tags that reports which of them are released."""
    seen = replace(context.evidence, observed=Observation(released_tags=frozenset(released)))
    return replace(context, evidence=seen, capabilities=TINY)


def test_an_engine_that_tells_what_is_released_gives_evidence_for_tags_too_small_to_see() -> None:
    kv = {"weights": True, "kv_cache": True}, frozenset({"kv_cache"})
    there = p.weights_mapped(reporting(restored(FULL, FULL), "kv_cache"))
    assert (type(there), there.grade) == (Proved, Grade.REPORTED)
    all_there = p.kv_mapped(reporting(restored(FULL, FULL, kv[0], targets=kv[1])))
    assert (type(all_there), all_there.grade) == (Proved, Grade.REPORTED)
    gone = p.tags_unmapped(reporting(released(FULL, FULL), "weights", "kv_cache"))
    assert (type(gone), gone.grade) == (Proved, Grade.REPORTED)


def test_an_engine_that_denies_what_was_answered_is_not_believed_either_way() -> None:
    for context, check in (
        (reporting(restored(FULL, FULL), "weights"), p.weights_mapped),
        (reporting(restored(reading(GIB // 2), reading(5 * GIB)), "weights"), p.weights_mapped),
        (reporting(restored(FULL, FULL, {"weights": True, "kv_cache": True}), "weights"), p.kv_mapped),
        (reporting(released(FULL, reading(GIB // 2)), "kv_cache"), p.tags_unmapped),
    ):
        denied = check(context)
        assert isinstance(denied, Pending)
        assert "it says that weights is" in denied.reason


def test_kv_mapped_means_every_tag() -> None:
    whole = {"weights": True, "kv_cache": True}
    kv = frozenset({"kv_cache"})
    assert isinstance(p.kv_mapped(restored(reading(5 * GIB), reading(13 * GIB), whole, targets=kv)), Proved)
    for missing in whole:
        verdict = p.kv_mapped(restored(reading(5 * GIB), reading(13 * GIB), {**whole, missing: False}, targets=kv))
        assert isinstance(verdict, Refuted)
        assert missing in verdict.reason


LOADED = {"contents": {"weights": Contents("loaded", "v1")}}
SUMMED = FromDisk("/m", "v1", checksum="abc")


@pytest.mark.parametrize(
    ("context", "kind", "says"),
    [
        (asked(UpdateWeights(V1), known=LOADED, weights_label="v1"), Proved, "version v1 was loaded"),
        (asked(UpdateWeights(V1), known=LOADED), Proved, "version v1 was loaded"),
        (asked(UpdateWeights(V1), known=LOADED, weights_label="v0"), Refuted, "reports version 'v0', not 'v1'"),
        (asked(UpdateWeights(V1), weights_label="v1"), Refuted, "weights holds launched(v0), not v1"),
        (asked(UpdateWeights(V1), known={"contents": {"weights": None}}), Refuted, "contents unknown"),
        (asked(UpdateWeights(SUMMED), known=LOADED, checksum="abc"), Proved, "its checksum is abc"),
        (asked(UpdateWeights(SUMMED), known=LOADED, checksum="xyz"), Refuted, "its checksum is xyz, not abc"),
        (asked(UpdateWeights(SUMMED), known=LOADED), Unmeasurable, "the engine gives none"),
    ],
)
def test_weights_match(context: Context, kind: type, says: str) -> None:
    verdict = p.weights_match(context)
    assert type(verdict) is kind
    assert says in verdict.reason


def test_weights_match_is_graded_by_what_showed_it() -> None:
    grades = [
        p.weights_match(asked(UpdateWeights(V1), known=LOADED)).grade,
        p.weights_match(asked(UpdateWeights(V1), known=LOADED, weights_label="v1")).grade,
        p.weights_match(asked(UpdateWeights(SUMMED), known=LOADED, checksum="abc")).grade,
    ]
    assert grades == [Grade.ACKNOWLEDGED, Grade.REPORTED, Grade.MEASURED]


@pytest.mark.parametrize(("fresh", "kind"), [(True, Proved), (False, Refuted), (None, Refuted)])
def test_cache_fresh(fresh: bool | None, kind: type) -> None:
    assert type(p.cache_fresh(asked(known={"cache_fresh": fresh}))) is kind


def test_every_proof_of_the_table_is_tested_here() -> None:
    used = {proof.name for operation in OPERATIONS for proof in operation.proofs}
    assert used == {
        "admission_closed",
        "idle",
        "tags_unmapped",
        "memory_returned",
        "weights_mapped",
        "kv_mapped",
        "weights_match",
        "cache_fresh",
        "answers",
    }


def test_what_a_proof_establishes() -> None:
    context = released(FULL, reading(GIB))
    proved = Proved(grade=Grade.MEASURED)
    assert p.tags_unmapped.learns(context, proved) == {Fact.MAPPED: {"weights": False, "kv_cache": False}}
    assert p.weights_mapped.learns(context, proved) == {Fact.MAPPED: {"weights": True, "kv_cache": True}}
    assert p.admission_closed.learns(context, proved) == {Fact.ADMISSION: "closed"}
    assert p.idle.learns(context, proved) == {Fact.RUNNING: 0}
    dropped = Proved(grade=Grade.REPORTED, figures={"cache_dropped": True})
    assert p.idle.learns(context, dropped)[Fact.CACHE_FRESH] is True
    assert p.answers.learns(context, proved)[Fact.ADMISSION] == "open"
    assert p.memory_returned.learns(context, proved) == {}
