"""What the tests of members share: a fleet behind a router that serves v1, and newcomers."""

from __future__ import annotations

from typing import Any

from rig import V1, fleet_of, new_engine

from lifecycle import Engine, Fleet
from lifecycle.testing import QUICK, Journal, ScriptedAdapter


def newcomer(journal: Journal, name: str = "c", **how: Any) -> Engine:
    """An engine that serves v0 unless `how` says otherwise."""
    return new_engine(name, journal=journal, has_router=True, **how)


def driven(adapter: ScriptedAdapter, name: str) -> Engine:
    """One more object that drives this engine."""
    return Engine(adapter, name=name, policy=QUICK, probe=adapter.probe, lease=None)


async def serving_v1(*names: str, **how: Any) -> tuple[Fleet, Journal]:
    """A fleet behind a router that serves v1, from disk."""
    fleet, journal = await fleet_of(*names, router=True, **how)
    async with fleet.offloaded(weights=V1):
        pass
    journal.clear()
    return fleet, journal
