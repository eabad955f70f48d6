"""A stateless caller may say which version of the weights an engine holds; the next proof measures what it can."""

from __future__ import annotations

from typing import Any

import pytest
from rig import V1, V2, engine_in, serve_again

from lifecycle import ConfigurationError, Engine, Grade, GuardRefused, InvalidTransition, State
from lifecycle.testing import KEPT_WEIGHTS, KV_CACHE, scripted

ME = {"by": "a framework", "reason": "it pushed them"}


async def failed(*tags: Any) -> Engine:
    return await engine_in(State.FAILED, *tags)


async def never_seen() -> Engine:
    """An engine that another process restored and updated, as this one finds it: its weights are not known."""
    engine = await engine_in(State.RELEASED)
    await engine.restore_weights()
    await engine.update_weights(V1)
    engine.adapter.reports_tags = True
    engine = await scripted(engine.adapter).connect()
    assert engine.state is State.WEIGHTS_RESTORED
    assert engine.facts.contents.get("weights") is None
    engine.adapter.journal.clear()
    return engine


async def test_a_stateless_caller_goes_on_by_the_version_that_it_says() -> None:
    engine = await never_seen()
    with pytest.raises(GuardRefused, match="weights_valid"):
        await engine.restore_kv()
    said = engine.override_state(State.WEIGHTS_RESTORED, version="v1", **ME)
    assert said.dest is State.WEIGHTS_RESTORED
    assert "with weights v1" in said.reason
    assert engine.facts.grades["contents"] is Grade.ASSERTED
    assert engine.facts.grades["mapped"] is not Grade.ASSERTED, "what is known stays known"
    assert str(engine.facts.contents["weights"].version) == "v1"
    await engine.restore_kv()
    await engine.resume()
    assert engine.state is State.SERVING


@pytest.mark.parametrize("state", [State.PAUSED, State.DRAINED, State.WEIGHTS_RESTORED, State.SERVING])
async def test_a_failed_engine_is_overridden_with_its_version(state: State) -> None:
    engine = await failed()
    engine.override_state(state, version="v7", **ME)
    assert engine.state is state
    assert {each.version for each in engine.facts.contents.values() if each is not None} == {"v7"}
    assert engine.facts.grades["contents"] is Grade.ASSERTED


async def test_another_version_than_the_one_that_is_wanted_is_not_served() -> None:
    engine = await failed()
    engine.set_desired(V2)
    engine.override_state(State.WEIGHTS_RESTORED, version="v1", **ME)
    assert "v2 is wanted" in str(engine.weights_refusal())


async def test_a_released_engine_that_discards_weights_has_no_version() -> None:
    engine = await failed()
    with pytest.raises(ConfigurationError, match=r"discards weights .* leave version='v1' out.*onload\(weights="):
        engine.override_state(State.RELEASED, version="v1", **ME)
    assert engine.state is State.FAILED


async def test_a_released_engine_that_keeps_weights_has_their_version() -> None:
    engine = await failed(KEPT_WEIGHTS, KV_CACHE)
    engine.override_state(State.RELEASED, version="v1", **ME)
    assert engine.facts.contents["weights"].origin == "kept"
    assert engine.facts.contents["weights"].version == "v1"


async def test_an_engine_without_weights_has_no_version() -> None:
    engine = await failed(KV_CACHE)
    with pytest.raises(ConfigurationError, match="no tag of weights"):
        engine.override_state(State.DRAINED, version="v1", **ME)


@pytest.mark.parametrize("version", ["", " ", 7, b"v1"])
async def test_a_version_is_a_label(version: Any) -> None:
    engine = await failed()
    with pytest.raises(ConfigurationError, match="a version is the label of weights"):
        engine.override_state(State.DRAINED, version=version, **ME)
    assert engine.state is State.FAILED


async def test_known_weights_are_not_overridden() -> None:
    engine = await engine_in(State.DRAINED)
    before = engine.record
    with pytest.raises(InvalidTransition):
        engine.override_state(State.DRAINED, version="v9", **ME)
    assert engine.record is before


async def test_another_state_than_the_known_one_is_not_asserted() -> None:
    engine = await never_seen()
    with pytest.raises(InvalidTransition):
        engine.override_state(State.DRAINED, version="v1", **ME)
    assert engine.state is State.WEIGHTS_RESTORED
    await engine.update_weights(V1)
    await engine.restore_kv()
    await serve_again(engine)
