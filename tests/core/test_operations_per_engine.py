"""What a fleet does for one engine does not grow with the number of the others. Counted, not timed.

Counted is how often an engine is asked for its name or group, and how often an engine or a name is compared with
another: a search through the engines in a loop over them compares each with every other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from rig import V1, new_engine

from lifecycle import ConfigurationError, Engine, Fleet, FleetError, Group, Pushed, State
from lifecycle.core.record import Desired
from lifecycle.testing import DIE, QUICK, REJECTED, Journal, ScriptedRouter

COUNTED: Counter[str] = Counter()
SMALL, LARGE = 12, 120


class Name(str):
    """A name that counts comparisons with others. One that is found in a dict or set is not compared."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        COUNTED["names compared"] += 1
        return str.__eq__(self, other)  # type: ignore[no-any-return]


class CountedEngine(Engine):
    """An engine that counts how often it is asked who it is."""

    __hash__ = Engine.__hash__

    @property
    def name(self) -> str:
        COUNTED["name asked"] += 1
        return self._session.name

    @property
    def group(self) -> str:
        COUNTED["group asked"] += 1
        return self._session.group

    def __eq__(self, other: object) -> bool:
        COUNTED["engines compared"] += 1
        return self is other


def engines_of(count: int, *, chained: bool = False) -> list[Engine]:
    """Engines of groups of ten, or each of its own group, each on a device of its own."""
    journal, policy = Journal(), replace(QUICK, on_failure="quarantine", settle_s=5.0)
    engines = []
    for number in range(count):
        devices = (f"gpu-{number}",)
        group = f"g{number}" if chained else f"g{number // 10}"
        engine = new_engine(
            Name(f"e{number}"), journal=journal, policy=policy, devices=devices, group=Name(group), has_router=True
        )
        engine.__class__ = CountedEngine
        engines.append(engine)
    return engines


def groups_of(engines: list[Engine]) -> dict[str, Group]:
    """Each group drains after the one before it, every other one."""
    names = list(dict.fromkeys(engine.group for engine in engines))
    return {name: Group(drain_after=(names[number - 1],) if number % 2 else ()) for number, name in enumerate(names)}


async def fleet_of(count: int) -> Fleet:
    engines = engines_of(count)
    policy = engines[0].policy
    return await Fleet(
        engines, groups=groups_of(engines), policy=policy, router=ScriptedRouter(engines[0].adapter.journal)
    ).__aenter__()


def per_engine(count: int) -> dict[str, float]:
    found = {what: times / count for what, times in COUNTED.items()}
    COUNTED.clear()
    return found


Act = Callable[[Fleet], Awaitable[object]]


async def looks_each_up(fleet: Fleet) -> None:
    for engine in list(fleet):
        assert fleet[engine.name] is engine
    assert fleet.participants([engine.name for engine in fleet]) == fleet.participants()


async def steps(fleet: Fleet) -> None:
    await fleet.pause()
    await fleet.drain()
    await fleet.release(weights=V1)
    await fleet.restore_weights()
    await fleet.update_weights(V1)
    await fleet.restore_kv()
    await fleet.resume()


async def cycles(fleet: Fleet) -> None:
    async with fleet.offloaded(weights=V1):
        pass


async def loses_some_in_a_move(fleet: Fleet) -> None:
    """Every third fails in the pause, killed or refusing; the move goes on without them."""
    for number, engine in enumerate(fleet.engines[::3]):
        engine.adapter.always("pause", DIE if number % 2 else REJECTED)
    await fleet.offload(weights=V1)
    assert len(fleet.quarantined) == len(fleet.engines[::3])
    await fleet.onload()


async def lost_some_before(fleet: Fleet) -> None:
    for engine in fleet.engines[::3]:
        engine._session.go("contradicted", reason="a test")
    await fleet.offload(weights=V1)


async def brings_all_back(fleet: Fleet) -> None:
    """Every third is failed, and of the others every second waits for a push of its own."""
    await fleet.offload(weights=V1)
    for number, engine in enumerate(fleet.engines):
        if number % 3 == 0:
            engine._session.go("contradicted", reason="a test")
        elif number % 3 == 1:
            pushed = Desired(Pushed(None, f"v{number}"), f"v{number}")
            engine._session.commit(replace(engine.record, desired=pushed))
    await fleet.recover(to="serving")


async def fails_for_some(fleet: Fleet) -> None:
    for engine in fleet.engines[::3]:
        engine.adapter.always("pause", REJECTED)
    with pytest.raises(FleetError):
        await fleet.pause()


@pytest.mark.parametrize(
    "act",
    [
        looks_each_up,
        steps,
        cycles,
        loses_some_in_a_move,
        lost_some_before,
        brings_all_back,
        fails_for_some,
    ],
    ids=lambda act: act.__name__,
)
async def test_what_is_done_for_an_engine_does_not_grow_with_the_fleet(act: Act) -> None:
    found = []
    for count in (SMALL, LARGE):
        fleet = await fleet_of(count)
        COUNTED.clear()
        await act(fleet)
        found.append(per_engine(count))
        await fleet.aclose()
    small, large = found
    grown = {what: (small.get(what, 0.0), large[what]) for what in large if large[what] > small.get(what, 0.0) + 2}
    assert not grown, f"{act.__name__}: a search through all engines for each of them: {grown}"


@pytest.mark.parametrize("chained", [False, True], ids=["few groups", "a chain of groups"])
def test_a_fleet_is_made_without_a_search_for_each_engine(chained: bool) -> None:
    found = []
    for count in (100, 1000):
        engines = engines_of(count, chained=chained)
        names = [engine.group for engine in engines]
        behind = {name: Group(drain_after=(names[number - 1],) if number else ()) for number, name in enumerate(names)}
        groups = behind if chained else groups_of(engines)
        COUNTED.clear()
        fleet = Fleet(engines, groups=groups)
        waves = fleet.waves(fleet.engines)
        found.append(per_engine(count))
        assert len(waves) == (count if chained else 2)
        assert [engine for wave in waves for engine in wave if engine.state is State.DETACHED]
    small, large = found
    grown = {what: (small.get(what, 0.0), large[what]) for what in large if large[what] > small.get(what, 0.0) + 1}
    assert not grown, grown


def test_a_circle_of_groups_names_the_groups_that_make_it() -> None:
    engines = engines_of(4, chained=True)
    groups = {"g0": Group(drain_after=("g1",)), "g1": Group(drain_after=("g0",)), "g2": Group(drain_after=("g0",))}
    with pytest.raises(ConfigurationError, match="the groups g0, g1 drain after each other in a circle"):
        Fleet(engines, groups=groups)
