"""Every guard: it refuses in the case it is for, with words to act on, and passes otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from rig import V1, V2, context_of, facts

from lifecycle import (
    Contents,
    Engine,
    Fact,
    FromDisk,
    Grade,
    Kept,
    NotApplicable,
    Pause,
    Pending,
    Policy,
    Proved,
    Pushed,
    Refuted,
    Release,
    RestoreKV,
    RestoreWeights,
    Resume,
    TagSpec,
    Unmeasurable,
    UpdateWeights,
)
from lifecycle.core.facts import GARBAGE
from lifecycle.core.readings import Reading
from lifecycle.core.record import Calibration
from lifecycle.core.units import GIB
from lifecycle.rules import guards as g
from lifecycle.rules.evidence import Context, Evidence
from lifecycle.rules.guards import Guard
from lifecycle.rules.table import OPERATIONS
from lifecycle.testing import KEPT_WEIGHTS, KV_CACHE, WEIGHTS, capabilities

MIB = 1 << 20


async def nothing(engines: Sequence[Engine]) -> None:
    return None


PUSH = Pushed(nothing, "v1")
V0 = FromDisk("/models/step-0", "v0")
YES = Proved(grade=Grade.MEASURED)


def context(command: Any = None, /, *, caps: Any = None, **changes: Any) -> Context:
    """What a guard is given about a drained, healthy engine, with these changes."""
    known = {name: changes.pop(name) for name in list(changes) if name in {str(fact) for fact in Fact}}
    evidence = {
        name: changes.pop(name)
        for name in ("residual", "idle", "hook_mode", "device_room", "host_room", "cotenants")
        if name in changes
    }
    return context_of(
        command or Resume(),
        facts(**known),
        caps or capabilities(),
        changes.pop("policy", Policy()),
        evidence=Evidence(**evidence),
        attached_boot="boot-1",
        **changes,
    )


def remembering(
    *,
    held_gib: float | None = 0,
    full_gib: float | None = None,
    mapped: dict[str, bool | None] | None = None,
    cause: str = "remembered",
    policy: Policy | None = None,
) -> Context:
    """What a guard is given of an engine whose mapping is only believed; `full_gib` was resident with all mapped."""
    given = context(Release(None, V1))
    known = given.facts.learn({Fact.MAPPED: mapped or {}}, Grade.ASSERTED, cause=cause)
    residual = Unmeasurable(reason="a test") if held_gib is None else _reading(held_gib)
    calibration = Calibration(reading_all_mapped=None if full_gib is None else _reading(full_gib))
    record = replace(given.record, facts=known, calibration=calibration)
    return replace(given, record=record, evidence=Evidence(residual=residual), policy=policy or Policy())


def _reading(held_gib: float) -> Reading:
    return Reading({"gpu-0": int(held_gib * GIB)}, (), "a test")


ALL_RELEASED: dict[str, bool | None] = {"weights": False, "kv_cache": False}
KEPT = capabilities(KEPT_WEIGHTS, KV_CACHE)
NO_DISK = capabilities(update=frozenset({"push"}))
KEPT_NO_DISK = capabilities(KEPT_WEIGHTS, KV_CACHE, update=frozenset({"push"}))
NO_PUSH = capabilities(update=frozenset({"disk"}))
NO_SAVER = capabilities(memory_saver=False, saver_option="--enable-memory-saver")
ONE_BY_ONE = capabilities(releasable=frozenset({frozenset({"weights"}), frozenset({"kv_cache"})}))
TINY = capabilities(TagSpec("weights", "weights", "kept", 20 * MIB), TagSpec("kv_cache", "kv", "kept", 40 * MIB))
SMALL_KV = capabilities(WEIGHTS, TagSpec("kv_cache", "kv", "discarded", 3328 * MIB))
HELD_70_GIB = Reading({"gpu-0": 70 * 1024 * MIB}, (), "a test")
UNSEEN = Policy(
    accept=dict.fromkeys(("memory_returned", "tags_unmapped", "weights_mapped", "kv_mapped"), Grade.ACKNOWLEDGED)
)

#: guard, the case it is for, words of its reason
REFUSES: list[tuple[Guard, Context, str]] = [
    (g.mode_supported, context(Pause("abort"), caps=capabilities(pause={})), "has no pause mode 'abort'; it has none"),
    (g.mode_supported, context(Pause("wait")), "needs a router that stops sending first"),
    (g.derouted, context(Pause(), has_router=True), "the router has not confirmed"),
    (g.derouted, context(Pause(), has_router=True, routed=True), "close it first"),
    (g.mode_change_safe, context(Pause("abort"), paused_by="freeze"), "hangs scripted for ever"),
    (g.mode_change_safe, context(Pause("abort"), paused_by=None), "how it was paused is not known"),
    (g.mode_change_safe, context(Pause("wait")), "needs a router"),
    (g.mode_drains, context(paused_by="freeze"), "a pause by 'freeze' never drains; pause it again by abort or wait"),
    (g.mode_drains, context(paused_by=None), "how it was paused is not known"),
    (g.still_idle, context(Release(None, V1), idle=Pending(reason="3 requests still run")), "3 requests still run"),
    (g.still_idle, context(Release(None, V1), idle=Unmeasurable(reason="frozen")), "kills the engine"),
    (g.still_idle, context(Release(None, V1)), "not asked"),
    (g.memory_saver_enabled, context(caps=capabilities(memory_saver=False)), "without its memory saver"),
    (g.memory_saver_enabled, context(caps=NO_SAVER), "start it with --enable-memory-saver"),
    (g.hook_mode_safe, context(hook_mode=Refuted(reason="preload on sm_100")), "preload on sm_100"),
    (g.tags_releasable, context(Release(frozenset(), V1)), "no tag is named"),
    (g.tags_releasable, context(Release(frozenset({"kv"}), V1)), "unknown tag kv; it has kv_cache, weights"),
    (g.tags_releasable, context(Release(None, V1), caps=ONE_BY_ONE), "cannot release kv_cache, weights together"),
    (g.weights_recoverable, context(Release()), "weights would be lost; name a source"),
    (g.weights_recoverable, context(Release(None, Kept())), "keeps no backup of weights"),
    (g.weights_recoverable, context(Release(None, V1), caps=NO_DISK), "cannot load weights from"),
    (g.weights_recoverable, context(Release(None, PUSH), caps=NO_PUSH), "it can: disk"),
    (g.weights_recoverable, context(Release(None, V0), caps=NO_DISK), "cannot load weights from"),  # it holds them now
    # what is kept comes back, and what was named could not be loaded over it
    (g.weights_recoverable, context(Release(None, V2), caps=KEPT_NO_DISK), "cannot load weights from"),
    (g.weights_recoverable, context(Release(frozenset({"kv_cache"}), V2), caps=KEPT_NO_DISK), "it can: push"),
    (g.weights_recoverable, context(Release(None, Pushed(None, "v2")), caps=KEPT), "has no callback in this process"),
    (g.bytes_visible, context(Release(None, V1), caps=TINY), "kv_cache, weights hold 60 MiB, too little to see"),
    (
        g.bytes_visible,
        context(Release(frozenset({"kv_cache"}), V1), caps=SMALL_KV, residual=HELD_70_GIB),
        "kv_cache hold 3328 MiB, too little to see: less than 3584 MiB move unseen beside 71680 MiB resident",
    ),
    (
        g.bytes_visible,
        context(Release(frozenset({"kv_cache"}), V1), caps=SMALL_KV, full=HELD_70_GIB),
        "release more tags with them, or accept it unseen: Policy(accept={'memory_returned': Grade.ACKNOWLEDGED",
    ),
    (g.host_has_room, context(host_room=Refuted(reason="12 GiB short")), "12 GiB short"),
    (g.device_has_room, context(device_room=Pending(reason="pid 7 holds 9 GiB")), "pid 7 holds 9 GiB"),
    (g.cotenants_within_budget, context(cotenants=Refuted(reason="the trainer is over")), "the trainer is over"),
    (g.source_ready, context(UpdateWeights(Kept())), "Kept() brings nothing new"),  # type: ignore[arg-type]
    (g.source_ready, context(UpdateWeights(FromDisk("/m", " "))), "empty version"),
    (g.source_ready, context(UpdateWeights(FromDisk("/m", "v0"))), "'v0' is loaded and valid already; force=True"),
    (g.source_ready, context(UpdateWeights(V1), caps=NO_DISK), "cannot load weights from"),
    (g.live_update_supported, context(UpdateWeights(V1)), "would mix weights inside requests"),
    (g.live_update_supported, context(UpdateWeights(V1), paused_by="freeze", caps=NO_PUSH), "would mix weights"),
    (g.mapping_borne_out, remembering(held_gib=1), "1024 MiB are resident, and its mapped tags hold 12288 MiB"),
    (g.mapping_borne_out, remembering(held_gib=36, full_gib=40), "which is what it holds with weights released"),
    (g.mapping_borne_out, remembering(mapped=ALL_RELEASED, held_gib=12, full_gib=12), "holds with nothing released"),
    (g.mapping_borne_out, remembering(), "recover() finds out which tags are mapped"),
    (g.mapping_borne_out, remembering(mapped={"weights": None}), "0 MiB are resident, and its mapped tags hold 8192"),
    (g.mapping_borne_out, remembering(held_gib=None), "unmeasurable: a test; fix this, or accept it unseen"),
    (g.all_mapped, context(mapped={"kv_cache": False}), "kv_cache not known to be mapped"),
    (g.all_mapped, context(mapped={"kv_cache": None}), "kv_cache not known to be mapped"),
    (g.weights_valid, context(contents={"weights": GARBAGE}), "it came back unwritten"),
    (g.weights_valid, context(contents={"weights": None}), "contents unknown"),
    (g.weights_valid, context(boot="boot-2"), "what a restarted process launched with"),
    (g.weights_valid, context(wanted="v1"), "launched(v0), and v1 is wanted"),
    (g.cache_fresh, context(cache_fresh=False), "may belong to other weights"),
    (g.cache_fresh, context(cache_fresh=None), "memory that was given back"),
]

PASSES: list[tuple[Guard, Context]] = [
    (g.mode_supported, context(Pause("abort"))),
    (g.mode_supported, context(Pause("wait"), has_router=True)),
    (g.derouted, context(Pause())),
    (g.derouted, context(Pause(), has_router=True, routed=False)),
    (g.mode_change_safe, context(Pause("abort"), paused_by="keep")),
    (g.mode_change_safe, context(Pause("keep"), paused_by="freeze")),
    (g.mode_change_safe, context(Pause("keep"), paused_by=None)),
    (g.mode_drains, context(paused_by="abort")),
    (g.mode_drains, context(paused_by="keep")),
    (g.still_idle, context(Release(None, V1), idle=Proved(grade=Grade.REPORTED))),
    (g.memory_saver_enabled, context()),
    (g.memory_saver_enabled, context(caps=capabilities(memory_saver=None))),
    (g.hook_mode_safe, context()),
    (g.hook_mode_safe, context(hook_mode=YES)),
    (g.tags_releasable, context(Release(None, V1))),
    (g.tags_releasable, context(Release(frozenset({"kv_cache"})))),
    (g.tags_releasable, context(Release(frozenset({"kv_cache"})), caps=ONE_BY_ONE)),
    (g.weights_recoverable, context(Release(None, V1))),
    (g.weights_recoverable, context(Release(None, PUSH))),
    (g.weights_recoverable, context(Release(frozenset({"kv_cache"})))),
    (g.weights_recoverable, context(Release(None, Kept()), caps=KEPT)),
    (g.weights_recoverable, context(Release(), caps=KEPT)),
    (g.weights_recoverable, context(Release(None, V0), caps=KEPT_NO_DISK)),  # what it keeps is what is named
    (g.weights_recoverable, context(Release(None, V0), caps=KEPT_NO_DISK, mapped={"weights": False})),
    (g.weights_recoverable, context(Release(None, PUSH), caps=KEPT_NO_DISK)),
    (g.weights_recoverable, context(Release(None, V2), caps=KEPT)),
    (g.bytes_visible, context(Release(None, V1))),
    (g.bytes_visible, context(Release(None, V1), caps=SMALL_KV, residual=HELD_70_GIB)),
    (g.bytes_visible, context(Release(frozenset({"kv_cache"}), V1), caps=SMALL_KV)),
    (g.bytes_visible, context(Release(None, V1), caps=TINY, policy=UNSEEN)),
    (g.bytes_visible, context(Release(None, V1), caps=capabilities(TagSpec("weights", "weights", "kept"), KV_CACHE))),
    (g.bytes_visible, context(Release(None, V1), caps=TINY, mapped={"weights": False, "kv_cache": False})),
    (g.host_has_room, context(host_room=YES)),
    (g.host_has_room, context(host_room=NotApplicable(reason="no backup"))),
    (g.device_has_room, context(RestoreWeights(), device_room=YES)),
    (g.cotenants_within_budget, context(RestoreKV(), cotenants=YES)),
    (g.source_ready, context(UpdateWeights(V1))),
    (g.source_ready, context(UpdateWeights(PUSH))),
    (g.source_ready, context(UpdateWeights(FromDisk("/m", "v0"), force=True))),
    (g.source_ready, context(UpdateWeights(FromDisk("/m", "v0")), contents={"weights": GARBAGE})),
    (g.source_ready, context(UpdateWeights(FromDisk("/m", "v0")), contents={"weights": None})),
    (g.live_update_supported, context(UpdateWeights(V1), paused_by="freeze")),
    (g.mapping_borne_out, context()),
    (g.mapping_borne_out, remembering(held_gib=12)),
    (g.mapping_borne_out, remembering(held_gib=12, full_gib=12)),
    (g.mapping_borne_out, remembering(held_gib=14, full_gib=12)),
    (g.mapping_borne_out, remembering(mapped=ALL_RELEASED, held_gib=0, full_gib=12)),
    (g.mapping_borne_out, remembering(held_gib=36, full_gib=40, cause="launch")),
    (g.mapping_borne_out, remembering(held_gib=None, cause="launch")),
    (g.mapping_borne_out, remembering(held_gib=None, policy=Policy(accept={"mapping_borne_out": Grade.ACKNOWLEDGED}))),
    (g.mapping_borne_out, remembering(held_gib=0, policy=Policy(accept={"mapping_borne_out": Grade.ASSERTED}))),
    (g.mapping_borne_out, remembering(mapped={"weights": None}, held_gib=8)),
    (g.all_mapped, context()),
    (g.weights_valid, context()),
    (g.weights_valid, context(wanted="v0")),
    (g.weights_valid, context(contents={"weights": Contents("kept", "v1")}, wanted="v1")),
    (g.weights_valid, context(contents={"weights": Contents("loaded", "v1")}, boot="boot-2", wanted="v1")),
    (g.cache_fresh, context()),
]


def name_of(case: Any) -> str | None:
    return case.name if isinstance(case, Guard) else None


@pytest.mark.parametrize(("guard", "given", "says"), REFUSES, ids=name_of)
def test_the_guard_refuses_with_words_to_act_on(guard: Guard, given: Context, says: str) -> None:
    reason = guard(given)
    assert reason is not None
    assert says in reason


@pytest.mark.parametrize(("guard", "given"), PASSES, ids=name_of)
def test_the_guard_passes_otherwise(guard: Guard, given: Context) -> None:
    assert guard(given) is None


def test_every_guard_of_the_table_stands_in_both_lists() -> None:
    used = {guard.name for operation in OPERATIONS for guard in operation.guards}
    assert {guard.name for guard, _, _ in REFUSES} == used
    assert {guard.name for guard, _ in PASSES} == used


@pytest.mark.parametrize(
    "guard", {guard.name: guard for row in OPERATIONS for guard in row.guards}.values(), ids=name_of
)
def test_every_guard_says_in_one_sentence_what_holds(guard: Guard) -> None:
    assert guard.doc.splitlines()[0].endswith((".", ":"))
    if guard.static:
        assert not guard.needs


def test_the_weights_of_every_tag_count() -> None:
    draft = replace(KEPT_WEIGHTS, name="draft")
    caps = capabilities(KEPT_WEIGHTS, draft, KV_CACHE)
    half = context(caps=caps, contents={"weights": Contents("loaded", "v1"), "draft": GARBAGE}, wanted="v1")
    assert "draft holds" in (g.weights_valid(half) or "")
