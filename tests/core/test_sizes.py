"""Sizes: one that an engine only reports is a hint, decided by the bytes of each call and replaced by measuring."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rig import V1, context_of, engine_in, facts, serve_again

from lifecycle import (
    Engine,
    NotProved,
    Pending,
    Policy,
    Proved,
    Refuted,
    Release,
    State,
    TagSpec,
    Unmeasurable,
)
from lifecycle.core.facts import SizeGrade
from lifecycle.core.readings import Holder, Reading
from lifecycle.core.record import Calibration, UncertainCall
from lifecycle.rules import memory
from lifecycle.rules import proofs as p
from lifecycle.rules.evidence import Context, Evidence
from lifecycle.rules.mapping import mapping_from_freed_bytes
from lifecycle.rules.sizes import Size, size_on_device, size_per_rank
from lifecycle.testing import KEPT_WEIGHTS, KV_CACHE, capabilities

MIB = 1 << 20
GIB = 1 << 30
REPORTED, TENSORS, MEASURED = SizeGrade
WEIGHTS, KV, BOTH = frozenset({"weights"}), frozenset({"kv_cache"}), frozenset({"weights", "kv_cache"})

#: As measured on a real server: 283 MiB are reported, 229 MiB are there.
HELD_MIB = {"weights": 229, "kv_cache": 160}


def reported(weights_mib: int = 283, kv_mib: int = 160, kv_grade: SizeGrade = TENSORS, **changes: Any) -> Any:
    tags = (
        TagSpec("weights", "weights", "discarded", weights_mib * MIB, REPORTED),
        TagSpec("kv_cache", "kv", "discarded", kv_mib * MIB, kv_grade),
    )
    return capabilities(*tags, **changes)


def held(mib: float, *holders: Holder) -> Reading:
    return Reading({"gpu-0": round(mib * MIB)}, holders, "a test")


def release(
    kv: float | None, weights: float, *, base: float = 1548, one_call: bool = False, caps: Any = None, **changes: Any
) -> Context:
    """After a release whose calls gave back so many MiB; `kv` None: what it gave back could not be read."""
    before, after = held(base + sum(HELD_MIB.values())), held(base + sum(HELD_MIB.values()) - (kv or 0) - weights)
    between: Any = Unmeasurable(reason="busy") if kv is None else held(base + sum(HELD_MIB.values()) - kv)
    unread = Unmeasurable(reason="the proof reads it")
    return context_of(
        Release(None, V1),
        facts(mapped={"weights": False, "kv_cache": False}),
        caps or reported(),
        Policy(residual_threshold_gib=changes.pop("threshold_mib", 1800) / 1024),
        targets=BOTH,
        baseline=Evidence(residual=before),
        evidence=Evidence(residual=changes.pop("after", after)),
        readings_per_call=((BOTH, unread),) if one_call else ((KV, between), (WEIGHTS, unread)),
        **changes,
    )


@pytest.mark.parametrize(
    ("context", "kind", "says"),
    [
        (release(160, 229), Proved, "returned 389 MiB of 443 MiB expected (a size that the engine reports)"),
        (release(160, 283), Proved, "returned 443 MiB of 443 MiB"),
        (release(0, 0), Pending, "only 0 MiB were seen to go with kv_cache"),
        (release(160, 0), Pending, "only 0 MiB were seen to go with weights, of which at least 149 MiB must"),
        (release(160, 283 / 2), Pending, "only 142 MiB were seen to go with weights"),
        (release(0, 229), Pending, "only 0 MiB were seen to go with kv_cache, of which at least 144 MiB must"),
        (release(80, 229), Pending, "only 80 MiB were seen to go with kv_cache"),
        (release(160, 229, threshold_mib=1500), Pending, "1548 MiB resident exceeds 1500 MiB allowed"),
        # with one call for both, and where a reading failed, either may be what is short
        (release(0, 389, one_call=True), Pending, "only 389 MiB were seen to go with kv_cache+weights"),
        (release(None, 389), Pending, "only 389 MiB were seen to go with kv_cache+weights"),
        (release(0, 389, one_call=True, caps=reported(kv_grade=REPORTED)), Proved, "returned 389 MiB"),
        (release(0, 283, one_call=True, caps=reported(kv_grade=REPORTED)), Pending, "were seen to go with"),
        # too small a size is met by less than there is, and is none the worse for that
        (release(160, 229, caps=reported(118)), Proved, "returned 389 MiB of 278 MiB expected"),
    ],
)
def test_a_reported_size_is_decided_by_the_bytes_of_each_call(context: Context, kind: type, says: str) -> None:
    verdict = p.memory_returned(context)
    assert type(verdict) is kind, verdict
    assert says in verdict.reason
    if kind is Proved:
        assert isinstance(p.tags_unmapped(context), Proved)


def test_a_call_that_releases_nothing_decides_nothing() -> None:
    """Torch in this process copies the weights to the host first, and checks them last."""
    context = release(160, 229)
    kv, weights = context.readings_per_call
    staged = held(1937)
    calls = ((frozenset(), staged), kv, (frozenset(), kv[1]), (WEIGHTS, held(1600)), (frozenset(), weights[1]))
    verdict = p.memory_returned(replace(context, readings_per_call=calls))
    assert isinstance(verdict, Proved), verdict
    assert verdict.figures["returned_by_tag"] == {"kv_cache": 160 * MIB, "weights": 229 * MIB}


@pytest.mark.parametrize("grade", [TENSORS, MEASURED])
def test_a_size_that_is_known_better_must_be_met(grade: SizeGrade) -> None:
    caps = capabilities(
        TagSpec("weights", "weights", "discarded", 283 * MIB, TENSORS if grade is TENSORS else REPORTED),
        TagSpec("kv_cache", "kv", "discarded", 160 * MIB),
    )
    learned = {WEIGHTS: 283 * MIB} if grade is MEASURED else {}
    verdict = p.memory_returned(release(160, 229, caps=caps, learned=learned))
    assert isinstance(verdict, Pending)
    assert "expected_is" not in verdict.figures


def on_one_host(gave_mib: list[float]) -> Context:
    """Four ranks that share a host, of 100 MiB of reported weights each, after they gave back so much."""
    before = held(800, *(Holder(10 + rank, "gpu-0", 200 * MIB, "rank") for rank in range(4)))
    left = [200 - gave for gave in gave_mib]
    after = held(sum(left), *(Holder(10 + rank, "gpu-0", round(mib * MIB), "rank") for rank, mib in enumerate(left)))
    caps = capabilities(TagSpec("weights", "weights", "kept", 100 * MIB, REPORTED), KV_CACHE, ranks=4)
    return context_of(
        Release(WEIGHTS),
        facts(mapped={"weights": False, "kv_cache": True}),
        caps,
        Policy(),
        targets=WEIGHTS,
        baseline=Evidence(residual=before),
        evidence=Evidence(residual=after),
    )


def test_a_rank_that_kept_its_part_is_seen_though_the_host_is_shared() -> None:
    assert isinstance(p.memory_returned(on_one_host([81, 81, 81, 81])), Proved)
    stuck = p.memory_returned(on_one_host([100, 100, 100, 0]))
    assert isinstance(stuck, Pending)
    assert "only 3 of 4 ranks were seen to give their part back" in stuck.reason


def other_tag(freed_mib: float, weights_mib: int, *tags: str) -> Any:
    """The verdict on a release of these tags alone, by which so much came back."""
    before = 1548 + sum(HELD_MIB.values())
    context = context_of(
        Release(frozenset(tags), V1),
        facts(mapped={tag: tag not in tags for tag in BOTH}),
        reported(weights_mib),
        Policy(),
        targets=frozenset(tags),
        baseline=Evidence(residual=held(before)),
        evidence=Evidence(residual=held(before - freed_mib)),
    )
    return p.tags_unmapped(context)


@pytest.mark.parametrize("weights_mib", [180, 229, 283, 340])
@pytest.mark.parametrize("tag", ["weights", "kv_cache"])
def test_a_release_of_all_is_seen_though_a_size_is_wrong(tag: str, weights_mib: int) -> None:
    assert isinstance(other_tag(HELD_MIB[tag], weights_mib, tag), Proved)
    every = other_tag(sum(HELD_MIB.values()), weights_mib, tag)
    assert isinstance(every, Refuted)
    assert every.denied == BOTH - {tag}


async def test_a_hint_that_is_too_small_to_see_may_be_wrong() -> None:
    """As measured on a real server: 92 MiB are reported, 183 MiB are there, and 95 MiB can be seen."""
    small = replace(KEPT_WEIGHTS, expected_bytes=92 * MIB, size_grade=REPORTED)
    pool = replace(KV_CACHE, expected_bytes=1200 * MIB)
    engine = await engine_in(State.DRAINED, small, pool, sizes={"weights": 183 * MIB})
    for expected in (None, 183 * MIB):
        record = await engine.release(["weights"])
        assert (record.returned_bytes, record.expected_bytes) == (183 * MIB, expected)
        await engine.restore_weights()
        await engine.restore_kv()


def test_what_a_size_is_known_by() -> None:
    caps, reading = reported(ranks=2), held(2000)
    assert size_per_rank(KV, caps, {}) == Size(160 * MIB, TENSORS)
    assert size_per_rank(BOTH, caps, {}) == Size(443 * MIB, REPORTED), "no better than the worst of them"
    assert size_per_rank(BOTH, caps, {WEIGHTS: 229 * MIB}) == Size(389 * MIB, TENSORS)
    assert size_per_rank(BOTH, caps, {BOTH: 380 * MIB}) == Size(380 * MIB, MEASURED)
    assert size_per_rank(frozenset(), caps, {}) == Size(0, MEASURED)
    assert size_per_rank(WEIGHTS, capabilities(TagSpec("weights", "weights", "kept")), {}) is None
    assert size_on_device(KV, reading, caps, {}) == Size(320 * MIB, TENSORS)


@pytest.mark.parametrize(
    ("context", "learned"),
    [
        (release(160, 229), {WEIGHTS: 229}),
        (release(160, 229, caps=reported(kv_grade=REPORTED)), {WEIGHTS: 229, KV: 160}),
        (release(0, 389, one_call=True, caps=reported(kv_grade=REPORTED)), {BOTH: 389}),
        (release(160, 229, learned={WEIGHTS: 220 * MIB}), {WEIGHTS: 220}),
        (release(160, 0), {}),
    ],
)
def test_what_is_learned_from_a_release(context: Context, learned: dict[frozenset[str], int]) -> None:
    calls = [tags for tags, _ in context.readings_per_call]
    found = memory.learned_from_release(context, p.memory_returned(context), calls)
    assert found == {tags: mib * MIB for tags, mib in learned.items()}


def test_what_was_measured_of_one_process_is_not_used_for_the_next() -> None:
    known = Calibration("boot-1", {WEIGHTS: 229 * MIB}, held(1937), canary_answers={"v1": (1, 2)})
    assert known.of_another_process() == replace(known, bytes_by_tags={}, reading_all_mapped=None)


# the same with an engine


HINT = replace(KEPT_WEIGHTS, expected_bytes=5 * GIB, size_grade=REPORTED)


async def test_the_first_proved_release_replaces_what_was_reported() -> None:
    engine = await engine_in(State.DRAINED, HINT, KV_CACHE, sizes={"weights": 4 * GIB})
    first = await engine.release()
    assert (first.returned_bytes, first.expected_bytes) == (12 * GIB, 13 * GIB)
    await engine.restore_weights()
    await engine.restore_kv()
    second = await engine.release()
    assert (second.returned_bytes, second.expected_bytes) == (12 * GIB, 12 * GIB)
    await engine.restore_weights()
    await engine.restore_kv()
    engine.adapter.engine.leak_bytes = 2 * GIB
    with pytest.raises(NotProved, match="returned 10240 MiB of 12288 MiB expected"):
        await engine.release(deadline_s=0.2)


async def test_a_restarted_engine_is_measured_anew() -> None:
    engine = await engine_in(State.DRAINED, HINT, KV_CACHE, sizes={"weights": 4 * GIB})
    await engine.release()
    assert engine.record.calibration.bytes_by_tags == {WEIGHTS: 4 * GIB}
    engine.adapter.engine.restart()
    await engine.recover()
    assert engine.record.calibration.bytes_by_tags == {}


GONE, THERE = False, True


@pytest.mark.parametrize(
    ("known", "moved_mib", "decided"),
    [
        ({"weights": None}, 160 + 229, {"weights": GONE}),
        ({"weights": None}, 160, {"weights": THERE}),
        ({"weights": None}, 160 + 100, {}),
        ({"weights": None, "kv_cache": None}, 160, {"weights": THERE, "kv_cache": GONE}),
        ({"weights": None, "kv_cache": None}, 0, {"weights": THERE, "kv_cache": THERE}),
        ({"weights": None, "kv_cache": None}, 443, {"weights": GONE, "kv_cache": GONE}),
        ({"weights": None, "kv_cache": None}, 389, {}),
        ({"weights": None, "kv_cache": None}, 600, {}),
        ({"weights": GONE, "kv_cache": None}, 600, {}),
    ],
)
def test_bytes_decide_about_a_lost_release_as_well_as_the_size_is_known(
    known: dict[str, bool | None], moved_mib: int, decided: dict[str, bool]
) -> None:
    before, now = facts(), facts(mapped={"weights": False, "kv_cache": False, **known})
    call = UncertainCall({}, before, before, BOTH, held(1937))
    found = mapping_from_freed_bytes(now, call, held(1937 - moved_mib), reported(), Calibration(), Policy())
    assert found == decided


@pytest.mark.parametrize("moved_mib", [0, 160, 389])
def test_bytes_of_a_share_too_small_to_be_seen_decide_nothing(moved_mib: int) -> None:
    """Seen on a vLLM on a CPU: 0.6 MiB of weights came back, or not, as its process had grown by 0.6 MiB meanwhile."""
    before, now = facts(), facts(mapped={"weights": None, "kv_cache": None})
    call, policy = UncertainCall({}, before, before, BOTH, held(1937)), Policy(visible_bytes=500 * MIB)
    assert mapping_from_freed_bytes(now, call, held(1937 - moved_mib), reported(), Calibration(), policy) == {}


# what was accepted on the way out is accepted on the way back


LARGE, SMALL = replace(KEPT_WEIGHTS, expected_bytes=66 * GIB), replace(KV_CACHE, expected_bytes=3328 * MIB)


@pytest.mark.parametrize("kv_bytes", [3328 * MIB, 30 * MIB])
async def test_a_tag_too_small_to_see_comes_back_as_it_went(kv_bytes: int) -> None:
    engine = await engine_in(State.DRAINED, LARGE, replace(SMALL, expected_bytes=kv_bytes))
    for _ in range(2):
        await engine.release()
        assert engine.memory_is_free
        await engine.restore_weights()
        await engine.restore_kv()
    await engine.resume()
    assert engine.state is State.SERVING
    assert engine.adapter.engine.violations == engine.adapter.engine.deaths == []


async def test_weights_too_small_to_see_come_back_as_they_went() -> None:
    engine = await engine_in(State.DRAINED, replace(KEPT_WEIGHTS, expected_bytes=300 * MIB), KV_CACHE)
    await engine.release()
    await serve_again(engine)


@pytest.mark.parametrize(("tag", "state"), [("kv_cache", "restore_kv"), ("weights", "restore_weights")])
async def test_a_small_tag_that_is_seen_not_to_come_back_is_not_proved(tag: str, state: str) -> None:
    """Too small to be seen beside 70 GiB, but none of its 3 GiB came."""
    small = {tag: 3328 * MIB}
    large = {"weights": 66 * GIB, "kv_cache": 66 * GIB}
    sizes = {**large, **small}
    tags = (replace(each, expected_bytes=sizes[each.name]) for each in (KEPT_WEIGHTS, KV_CACHE))
    engine = await engine_in(State.DRAINED, *tags)
    await engine.release()
    model = engine.adapter.engine
    if tag == "kv_cache":
        await engine.restore_weights()
    model.sizes[tag] = 0
    with pytest.raises(NotProved, match="its bytes have not come back"):
        await getattr(engine, state)(deadline_s=0.2)


# a reading that fails


class FailsOnce:
    """The probe of an engine, of which so many readings fail from the one of this number on."""

    def __init__(self, engine: Engine, first: int, count: int = 1) -> None:
        self._read = engine.adapter.probe.read
        self._failing = range(first, first + count)
        self.readings = 0
        engine.adapter.probe.read = self.read

    async def read(self, processes: Any, *, deadline_s: float) -> Any:
        self.readings += 1
        reading = await self._read(processes, deadline_s=deadline_s)
        return Unmeasurable(reason="the driver did not answer") if self.readings - 1 in self._failing else reading


async def cycle(engine: Engine) -> None:
    await engine.release(weights=V1)
    assert engine.memory_is_free
    await engine.restore_weights()
    await engine.update_weights(V1)
    await engine.restore_kv()


@pytest.mark.parametrize("failing", range(7))
async def test_one_failed_reading_loses_nothing(failing: int) -> None:
    engine = await engine_in(State.DRAINED)
    await cycle(engine)  # it was measured before
    await engine.resume()
    await engine.pause()
    await engine.drain()
    probe = FailsOnce(engine, failing)
    await cycle(engine)
    assert probe.readings >= 7
    await engine.resume()
    assert engine.state is State.SERVING


async def test_a_dead_engine_is_not_asked_for_its_memory_until_the_deadline() -> None:
    engine = await engine_in(State.DRAINED)
    await cycle(engine)
    model, probe = engine.adapter.engine, FailsOnce(engine, 1, 1000)
    send = engine.adapter.send

    async def dies_after(call: Any, *, deadline_s: float) -> Any:
        reply = await send(call, deadline_s=deadline_s)
        model.die("it was killed")
        return reply

    engine.adapter.send = dies_after
    with pytest.raises(Exception, match="gone"):
        await engine.release(weights=V1, deadline_s=30)
    assert engine.state is State.GONE
    assert probe.readings < 6


async def test_a_restore_that_could_not_be_read_in_time_is_decided_once_it_can() -> None:
    engine = await engine_in(State.RELEASED)
    await engine.restore_weights()
    await engine.update_weights(V1)
    probe = engine.adapter.probe
    readings = FailsOnce(engine, 1, 1000)
    with pytest.raises(NotProved, match=r"did not answer|cannot be seen"):
        await engine.restore_kv(deadline_s=0.3)
    assert readings.readings > 4, "it was asked again"
    assert engine.state is State.FAILED
    probe.read = readings._read
    assert (await engine.recover()).state is State.DRAINED, "all is mapped"
    await engine.resume()
    assert engine.state is State.SERVING
