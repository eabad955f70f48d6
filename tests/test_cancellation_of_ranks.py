"""A verb of one rank is cancelled at every third await: the other ends at once, and both are in step afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from test_cancellation import given_up
from test_cancellation_of_fleets import VERBS, all_serve_again
from transports import POLICY, V1, new_engine
from virtual_time import virtually

from lifecycle import AgreementError, Fleet, FleetError, State
from lifecycle.testing import ranks_in_memory

pytestmark = pytest.mark.slow

TURNS: dict[str, int] = {}
#: No phase of scripted engines takes that long, and each would if it waited for its deadline (60 s or more).
AT_ONCE_S = 30.0


async def ranks_before(verb: str) -> list[Fleet]:
    """The fleets of two ranks in which this verb succeeds."""
    fleets = [Fleet([await new_engine(f"e{each.rank}")], policy=POLICY, agreement=each) for each in ranks_in_memory(2)]
    for before in VERBS[verb][1].split():
        await asyncio.gather(*(VERBS[before][0](fleet) for fleet in fleets))
    return fleets


@pytest.mark.parametrize(
    "verb", ["pause", "release", "offload", "onload", "offloaded", "offloaded in steps", "updating_weights"]
)
def test_the_other_rank_ends_at_once_and_both_are_in_step(verb: str) -> None:
    async def cut(turns: int) -> bool:
        fleets = await ranks_before(verb)
        begun = time.monotonic()
        other = asyncio.create_task(VERBS[verb][0](fleets[1]))
        cancelled = await given_up(VERBS[verb][0](fleets[0]), turns)
        if not cancelled:
            await other
            return False
        (outcome,) = await asyncio.gather(other, return_exceptions=True)
        assert time.monotonic() - begun < AT_ONCE_S
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, FleetError), outcome
            assert all(isinstance(each, AgreementError) for each in outcome.exceptions)
            assert {each.rank for each in outcome.exceptions if isinstance(each, AgreementError)} == {0}
        if verb.startswith("offloaded"):  # a window is always left serving, before anybody recovers anything
            assert [engine.state for fleet in fleets for engine in fleet] == [State.SERVING] * 2, outcome
        for fleet in fleets:
            with fleet.ranks.alone():
                await all_serve_again(fleet)
        for attempt in range(2):  # a rank that was cancelled after the last vote says so when the others come next
            done = await asyncio.gather(
                *(fleet.offload(weights=V1, deadline_s=5.0) for fleet in fleets), return_exceptions=True
            )
            if all(isinstance(each, list) for each in done):
                break
            assert attempt == 0, done
        assert [engine.state for fleet in fleets for engine in fleet] == [State.RELEASED] * 2
        return True

    turns = next(turns for turns in range(1, 2000, 3) if not virtually(cut(turns)))
    assert turns > 3
    TURNS[verb] = turns // 3


def test_the_turns_are_counted(report: Callable[[str], None]) -> None:
    report(f"cancellation of ranks: {sum(TURNS.values())} (verb, k) pairs over {len(TURNS)} verbs")
