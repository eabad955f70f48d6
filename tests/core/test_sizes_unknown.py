"""Sizes that nobody knows: an engine whose release frees nothing comes back, by what is resident as a whole."""

from __future__ import annotations

import re
from typing import Any

import pytest
from rig import context_of, engine_in, facts

from lifecycle import Kept, NotProved, Pending, Policy, Proved, Release, RestoreWeights, State, TagSpec
from lifecycle.core.readings import Reading
from lifecycle.core.record import Calibration
from lifecycle.rules import proofs as p
from lifecycle.rules.evidence import Context, Evidence
from lifecycle.rules.mapping import mapping_from_resident_bytes
from lifecycle.testing import capabilities

MIB = 1 << 20
UNKNOWN = TagSpec("weights", "weights", "kept"), TagSpec("kv_cache", "kv", "discarded")
BOTH = frozenset({"weights", "kv_cache"})


def held(mib: float, device: str = "gpu-0") -> Reading:
    return Reading({device: round(mib * MIB)}, (), "a test")


def restored(mib: float, *, full: Reading | None, learned: Any = None, visible_mib: int = 64) -> Context:
    """After a restore of the weights that moved nothing: so much is resident, before it and after it."""
    return context_of(
        RestoreWeights(),
        facts(mapped={"weights": True, "kv_cache": False}),
        capabilities(*UNKNOWN),
        Policy(residual_threshold_gib=0.1, visible_bytes=visible_mib * MIB),
        targets=frozenset({"weights"}),
        baseline=Evidence(residual=held(mib)),
        evidence=Evidence(residual=held(mib)),
        full=full,
        learned=learned or {},
    )


@pytest.mark.parametrize(
    ("context", "kind"),
    [
        (restored(1000, full=held(1000)), Proved),
        (restored(1100, full=held(1000)), Proved),
        (restored(970, full=held(1000)), Proved),
        (restored(967, full=held(1000)), Pending),  # half of what can be seen is missing
        (restored(967, full=held(1000), visible_mib=128), Proved),
        (restored(77_000 - 1_200, full=held(77_000)), Pending),  # the weights alone were released, and are not back
        (restored(1000, full=held(1000, "gpu-1")), Pending),  # another device says nothing of this one
        (restored(1000, full=None), Pending),
        (restored(1000, full=held(1000), learned={BOTH: 800 * MIB}), Pending),  # a release was proved: they went
    ],
)
def test_a_restore_is_proved_where_nothing_is_missing_and_no_release_was_proved(context: Context, kind: type) -> None:
    verdict = p.weights_mapped(context)
    assert type(verdict) is kind, verdict
    assert "as before the release" in verdict.reason or "have not come back" in verdict.reason


FEW = (
    r"how much they hold is not known: less than 64 MiB is not told .* give the sizes of its tags \(sizes= in its URL\)"
)


@pytest.mark.parametrize(("mib", "said"), [(62, True), (32, True), (31, False), (0, False)])
def test_of_little_that_moved_it_is_said_that_it_may_be_all(mib: int, said: bool) -> None:
    """Two ranks with 32 MiB of tags each return 62 to 64 MiB, and what they hold is not known before that is proved."""
    more, less = Evidence(residual=held(1000)), Evidence(residual=held(1000 - mib))
    policy, has = Policy(residual_threshold_gib=3.0), capabilities(*UNKNOWN)
    out = context_of(
        Release(None, Kept()), facts(mapped=dict.fromkeys(BOTH, False)), has, policy, targets=BOTH, baseline=more,
        evidence=less,
    )  # fmt: skip
    back = context_of(
        RestoreWeights(), facts(mapped={"weights": True, "kv_cache": False}), has, policy,
        targets=frozenset({"weights"}), baseline=less, evidence=more, learned={BOTH: 64 * MIB},
    )  # fmt: skip
    for verdict in (p.memory_returned(out), p.tags_unmapped(out), p.weights_mapped(back)):
        assert isinstance(verdict, Pending)
        assert bool(re.search(FEW, verdict.reason)) is said, verdict


async def test_an_engine_whose_release_frees_nothing_comes_back() -> None:
    engine = await engine_in(State.DRAINED, *UNKNOWN)
    engine.adapter.engine.frees = False
    with pytest.raises(NotProved, match="memory_returned is refuted"):
        await engine.release(deadline_s=0.3)
    assert engine.state is State.RELEASED
    assert not engine.memory_is_free
    await engine.restore_weights()
    await engine.restore_kv()
    await engine.resume()
    assert engine.state is State.SERVING


@pytest.mark.parametrize(("mib", "weights_mib", "mapped"), [(300, None, None), (300, 200, None), (100, 4000, False)])
def test_what_is_resident_under_the_threshold_may_be_tags_of_unknown_size(
    mib: float, weights_mib: int | None, mapped: bool | None
) -> None:
    weights = TagSpec("weights", "weights", "kept", weights_mib and weights_mib * MIB)
    kv = TagSpec("kv_cache", "kv", "discarded", None if mapped is None else 4000 * MIB)
    known = facts(mapped={"weights": None, "kv_cache": None})
    found = mapping_from_resident_bytes(known, held(mib), capabilities(weights, kv), Calibration(), Policy())
    assert found == ({} if mapped is None else {"weights": mapped, "kv_cache": mapped})
