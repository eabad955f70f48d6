"""Weights that somebody else loaded into an engine of a long-lived fleet are told by their label."""

from __future__ import annotations

import journals
import pytest
from rig import V1, V2, fleet_of, new_engine, sent, states

from lifecycle import Fleet, State
from lifecycle.core.journal import StateEntered
from lifecycle.testing import QUICK


async def with_v1() -> Fleet:
    """A fleet that serves v1, after a window."""
    fleet, _ = await fleet_of("a", "b")
    async with fleet.offloaded(weights=V1):
        pass
    return fleet


def loaded_by_others(fleet: Fleet, version: str) -> None:
    fleet["a"].adapter.engine.apply("load", {"path": "/models/other", "version": version, "flush": True})


async def test_an_onload_brings_back_what_the_fleet_serves() -> None:
    fleet = await with_v1()
    loaded_by_others(fleet, "v9")
    await fleet.onload()
    assert states(fleet) == {"a": "serving", "b": "serving"}
    assert {engine.adapter.engine.label for engine in fleet} == {"v1"}
    assert sum(call.startswith("load") for call in sent(fleet["b"])) == 1, "the other was left alone"


async def test_one_that_serves_other_weights_is_closed_and_the_reason_names_both() -> None:
    with journals.kept() as entries:
        fleet = await with_v1()
        loaded_by_others(fleet, "v9")
        assert await fleet["a"].verify() is State.PAUSED
    edges = [entry.event for entry in entries if isinstance(entry.event, StateEntered)]
    (reason,) = (edge.reason for edge in edges if edge.trigger == "contradicted")
    assert reason == "its weights have the label 'v9', and were left as 'v1': externally modified"
    assert fleet["a"].facts.contents == {"weights": None}


async def test_an_engine_that_has_no_label_denies_nothing() -> None:
    fleet = await with_v1()
    fleet["a"].adapter.engine.label = None
    fleet["a"].adapter.journal.clear()
    assert await fleet["a"].verify() is State.SERVING
    assert fleet["a"].adapter.journal.calls() == []


@pytest.mark.parametrize("version", [None, "v0"])
async def test_what_it_was_launched_with_is_what_it_says(version: str | None) -> None:
    engine = await new_engine(policy=QUICK, version=version).connect()
    assert await engine.verify() is State.SERVING
    await engine.pause()
    await engine.drain()
    await engine.update_weights(V2)
    await engine.resume()
    assert await engine.verify() is State.SERVING
