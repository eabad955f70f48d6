"""The blocking fleet with an agreement: ranks that are threads go on together or not at all."""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rig import V1, new_engine

from lifecycle import Fleet as AsyncFleet
from lifecycle import FleetError, RankFailed, State
from lifecycle.sync import Fleet, Loop
from lifecycle.testing import REJECTED, ranks_in_memory

WORLD = 3


def test_ranks_that_are_threads_release_together_and_fail_together() -> None:
    agreements = ranks_in_memory(WORLD)
    fleets = [Fleet(AsyncFleet([new_engine(f"e{each.rank}")], agreement=each), Loop()) for each in agreements]

    def cycle(fleet: Fleet) -> Any:
        with fleet:
            with fleet.offloaded(weights=V1, deadline_s=30) as released:
                held = [each.dest for each in released]
            if fleet is fleets[1]:
                fleet["e1"].adapter.script("release", REJECTED)
            try:
                fleet.offload(weights=V1, deadline_s=30)
            except FleetError as error:
                return held, error, fleet.engines[0].state
            return held, None, None

    with ThreadPoolExecutor(WORLD) as threads:
        said = list(threads.map(cycle, fleets))
    assert [held for held, _, _ in said] == [[State.RELEASED]] * WORLD
    for rank in (0, 2):
        _, error, state = said[rank]
        assert isinstance(error.exceptions[0], RankFailed)
        assert state is State.SERVING


def test_connect_takes_an_agreement() -> None:
    (agreement,) = ranks_in_memory(1)
    fleet = Fleet.connect(["loopback://127.0.0.1:1"], agreement=agreement)
    try:
        assert fleet._wrapped.ranks._agreement is agreement
    finally:
        fleet._loop.close()
    assert "agreement" in inspect.signature(AsyncFleet.connect).parameters
