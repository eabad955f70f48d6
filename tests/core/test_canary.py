"""The canary in a fleet: asked while no router sends to the engine, and one that differs keeps it closed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rig import V1, engine_in, fleet_of

from lifecycle import FleetError, Grade, NotProved, Proved, State
from lifecycle.testing import LOST, QUICK

WATCHING = replace(QUICK, canary_tokens=4)


def saying(*ids: int) -> Proved:
    return Proved(grade=Grade.MEASURED, figures={"output_ids": ids})


def lines(journal: Any) -> list[str]:
    """What happened, of routers and answers alone."""
    return [str(entry) for entry in journal if "router" in str(entry) or "answers" in str(entry)]


async def test_it_is_asked_with_the_router_closed() -> None:
    fleet, journal = await fleet_of("a", router=True, policy=WATCHING)
    async with fleet.offloaded(weights=V1):
        pass
    assert lines(journal) == ["a: router close", "a: answers -> proved", "a: answers -> proved", "a: router open"]


async def test_other_answers_with_the_same_version_keep_engine_and_router_closed() -> None:
    fleet, journal = await fleet_of("a", router=True, policy=WATCHING)
    adapter = fleet["a"].adapter
    adapter.script("answers", saying(1, 2), saying(3, 4), saying(9, 9))
    async with fleet.offloaded(weights=V1):
        pass
    journal.clear()
    with pytest.raises(FleetError) as refused:
        async with fleet.offloaded(weights=V1):
            pass
    message = str(refused.value)
    assert "it answers otherwise than it did with v1 before ([9, 9], not [3, 4])" in message
    assert "closed again, and admits no requests" in message
    assert adapter.engine.admission == "closed"
    assert "a: router open" not in lines(journal)


async def test_an_engine_that_does_not_answer_is_said_to_be_closed_again() -> None:
    engine = await engine_in(State.KV_RESTORED)
    engine.adapter.script("answers", LOST)
    with pytest.raises(NotProved, match="closed again, and admits no requests"):
        await engine.resume()
    assert engine.facts.admission == "closed"


async def test_without_a_canary_a_serving_engine_is_not_asked_before_it_is_paused() -> None:
    fleet, journal = await fleet_of("a", router=True)
    await fleet.offload(weights=V1)
    assert lines(journal) == ["a: router close"]
