"""Weights shown owner by owner: a draft model that was left behind, or came back otherwise, is named."""

from __future__ import annotations

from typing import Any

import pytest
from rig import V2, engine_in

from lifecycle import (
    BaseObserver,
    Call,
    ConfigurationError,
    FromDisk,
    GuardRefused,
    Kept,
    NotProved,
    Observation,
    Proved,
    Pushed,
    Refuted,
    Reply,
    State,
    TagSpec,
    Unmeasurable,
)
from lifecycle.core.observer import Observers
from lifecycle.rules.checksums import compare
from lifecycle.testing import KV_CACHE

GIB = 1 << 30
KEPT = TagSpec("weights", "weights", "kept", 4 * GIB)
BOTH = {"target": "t0", "draft": "d0"}


class Loads(BaseObserver):
    """When the engine has loaded weights, or its memory is back, these are its checksums."""

    def __init__(self, engine: Any, at: str, **checksums: str) -> None:
        self.model, self.at, self.checksums = engine.adapter.engine, at, checksums
        self.model.checksums |= BOTH

    def call(self, engine: str, call: Call, reply: Reply, duration_s: float) -> None:
        if call.name == self.at:
            self.model.checksums |= self.checksums


async def loading(source: FromDisk, **checksums: str) -> Any:
    """A drained engine with a draft model, whose checksums become these by its next load, and what came of one."""
    engine = await engine_in(State.DRAINED)
    engine._session.observers = Observers([Loads(engine, "load", **checksums)])
    return await engine.update_weights(source)


async def test_a_load_that_reached_both_is_shown() -> None:
    record = await loading(V2, target="t1", draft="d1")
    assert isinstance(record.verdicts["weights_match"], Proved)


@pytest.mark.parametrize(
    ("source", "loaded", "says"),
    [
        (V2, {"target": "t1"}, "the checksum of its draft is d0, as before: nothing was loaded"),
        (V2, {"draft": "d1"}, "the checksum of its target is t0, as before: nothing was loaded"),
        (
            FromDisk("/m", "v2", checksum={"target": "t1", "draft": "d1"}),
            {"target": "t1", "draft": "d9"},
            "the checksum of its draft is d9, not d1",
        ),
        (FromDisk("/m", "v2", checksum={"target": "t1"}), {"draft": "d1"}, "the checksum of its target is t0, not t1"),
    ],
)
async def test_the_owner_that_differs_is_named(source: FromDisk, loaded: dict[str, str], says: str) -> None:
    with pytest.raises(NotProved) as refused:
        await loading(source, **loaded)
    verdict = refused.value.verdicts["weights_match"]
    assert isinstance(verdict, Refuted)
    assert says in str(refused.value)
    other = "target" if "its draft" in says else "draft"
    assert f"its {other}" not in verdict.reason


async def test_a_draft_that_stays_on_purpose_is_not_asked_about() -> None:
    source = FromDisk("/m", "v2", checksum={"target": "t1"})
    verdict = (await loading(source, target="t1")).verdicts["weights_match"]
    assert verdict.reason == "the checksum of its target is t1"
    assert verdict.figures["checksums"] == {"target": "t1", "draft": "d0"}


async def test_kept_weights_name_the_owner_that_came_back_otherwise() -> None:
    engine = await engine_in(State.DRAINED, KEPT, KV_CACHE)
    engine._session.observers = Observers([Loads(engine, "restore", draft="zeros")])
    await engine.release(weights=Kept())
    await engine.restore_weights()
    with pytest.raises(GuardRefused) as refused:
        await engine.restore_kv()
    reason = refused.value.reasons["weights_valid"]
    assert "were to be kept, and the checksum of its draft is zeros, not d0" in reason
    assert "target" not in reason


ONE = Observation(checksum="whole", checksums={"target": "t1"})


@pytest.mark.parametrize(
    ("asked", "seen", "kind", "says"),
    [
        ("whole", ONE, Proved, "its checksum is whole"),
        ("other", ONE, Refuted, "its checksum is whole, not other"),
        ({"target": "t1"}, ONE, Proved, "the checksum of its target is t1"),
        (
            {"target": "t1", "draft": "d1"},
            ONE,
            Proved,
            "the checksum of its target is t1; draft: not applicable, it has none",
        ),
        ({"target": "t2", "draft": "d1"}, ONE, Refuted, "the checksum of its target is t1, not t2"),
        (
            {"target": "t1"},
            Observation(),
            Unmeasurable,
            "of target were asked for, and the engine gives none",
        ),
        ("whole", Observation(), Unmeasurable, "the engine gives none"),
    ],
)
def test_what_was_asked_for_against_what_was_seen(asked: Any, seen: Observation, kind: type, says: str) -> None:
    verdict = compare(asked, seen)
    assert type(verdict) is kind
    assert says in verdict.reason


def test_what_is_asked_of_a_draft_says_nothing_about_an_engine_without_one() -> None:
    assert compare({"draft": "d1"}, ONE) is None


async def test_an_engine_without_a_draft_is_not_excused_by_a_checksum_of_a_draft() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.engine.checksums["target"] = "t0"
    with pytest.raises(NotProved, match="its target is t0, as before"):
        await engine.update_weights(FromDisk("/m", "v2", checksum={"draft": "d1"}))


@pytest.mark.parametrize("source", [FromDisk, Pushed])
def test_an_owner_that_there_cannot_be_is_refused(source: Any) -> None:
    with pytest.raises(ConfigurationError, match="checksum of 'traget': one of target, draft"):
        source("/m", "v2", checksum={"traget": "t1"})
