"""What is no source of weights is refused wherever a caller gives one, before anything is sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from rig import engine_in, fleet_of

from lifecycle import ConfigurationError, Engine, Fleet, FromDisk, Kept, Release, State, UpdateWeights
from lifecycle.core.sources import checked
from lifecycle.rules.planner import Goal

NO_SOURCES: tuple[Any, ...] = ("nope", "", 7, b"/path", Kept, FromDisk, {"path": "/p"})

OF_ENGINES: dict[str, Callable[[Engine, Any], Awaitable[object]]] = {
    "release": lambda engine, source: engine.release(weights=source),
    "update_weights": lambda engine, source: engine.update_weights(source),
}

OF_FLEETS: dict[str, Callable[[Fleet, Any], Awaitable[object]]] = {
    "offload": lambda fleet, source: fleet.offload(weights=source),
    "onload": lambda fleet, source: fleet.onload(weights=source),
    "recover": lambda fleet, source: fleet.recover(to="serving", weights=source),
    "offloaded": lambda fleet, source: fleet.offloaded(weights=source).__aenter__(),
    "update_weights": lambda fleet, source: fleet.update_weights(source),
}


@pytest.mark.parametrize("source", NO_SOURCES, ids=repr)
def test_what_is_none_is_named_with_those_that_there_are(source: Any) -> None:
    released = State.RELEASED
    for make in (checked, UpdateWeights, lambda each: Release(None, each), lambda each: Goal(released, None, each)):
        with pytest.raises(ConfigurationError) as refused:
            make(source)
        assert str(refused.value).startswith(f"{source!r:.100} is no source of weights; it is one of FromDisk(")
    assert checked(None) is None
    with pytest.raises(ConfigurationError, match="None is no source"):
        UpdateWeights(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["nope", ""], ids=repr)
@pytest.mark.parametrize("verb", OF_ENGINES)
async def test_an_engine_is_sent_nothing(verb: str, source: Any) -> None:
    engine = await engine_in(State.DRAINED)
    with pytest.raises(ConfigurationError, match="is no source of weights"):
        await OF_ENGINES[verb](engine, source)
    assert engine.adapter.journal.calls() == []
    assert (engine.state, engine.busy) == (State.DRAINED, None)


@pytest.mark.parametrize("source", ["nope", ""], ids=repr)
@pytest.mark.parametrize("verb", OF_FLEETS)
async def test_a_fleet_is_left_as_it_is(verb: str, source: Any) -> None:
    fleet, journal = await fleet_of("a", "b")
    desired = {engine.name: engine.desired for engine in fleet}
    with pytest.raises(ConfigurationError, match="is no source of weights"):
        await OF_FLEETS[verb](fleet, source)
    assert {engine.state for engine in fleet} == {State.SERVING}
    assert {engine.name: engine.desired for engine in fleet} == desired
    assert journal.calls() == []


@pytest.mark.parametrize("source", ["nope", ""], ids=repr)
async def test_nor_is_one_that_is_drained(source: Any) -> None:
    fleet, journal = await fleet_of("a", "b")
    await fleet.pause()
    await fleet.drain()
    journal.clear()
    with pytest.raises(ConfigurationError, match="is no source of weights"):
        await fleet.release(weights=source)
    assert {engine.state for engine in fleet} == {State.DRAINED}
    assert journal.calls() == []
