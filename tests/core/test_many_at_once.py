"""Many engines at once: commands begin a few in each turn of the event loop, and what waits takes little room."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import pytest
from rig import V1, fleet_of, new_engine

from lifecycle import Engine, State
from lifecycle.core.commands import Pause
from lifecycle.engine.collective import Collective, CollectiveFailed
from lifecycle.fleet.course import PER_TURN, at_once
from lifecycle.testing import Journal


async def many(count: int) -> list[Engine]:
    journal = Journal()
    engines = [new_engine(f"e{number}", journal=journal) for number in range(count)]
    await asyncio.gather(*(engine.connect() for engine in engines))
    return engines


async def test_more_than_begin_in_one_turn_all_get_their_command_and_answer_in_order() -> None:
    engines = await many(2 * PER_TURN + 1)
    outcomes = await at_once([(engine, Pause("abort")) for engine in engines])
    assert [outcome.engine for outcome in outcomes] == engines
    assert {engine.state for engine in engines} == {State.PAUSED}


async def test_a_command_that_is_cancelled_from_within_is_no_success() -> None:
    """As one is that waits for what its adapter cancels when it is closed."""
    engines = await many(2)

    async def cancelled(call: Any, *, deadline_s: float) -> Any:
        answer = asyncio.get_running_loop().create_future()
        answer.cancel()
        return await answer

    engines[0].adapter.send = cancelled
    with pytest.raises(asyncio.CancelledError):
        await at_once([(engine, Pause("abort")) for engine in engines])


async def test_the_first_have_begun_before_the_last_are_asked() -> None:
    engines = await many(2 * PER_TURN + 1)
    begun: list[int] = []
    for engine in engines:
        send = engine.adapter.send

        async def counted(call: Any, *, deadline_s: float, send: Any = send) -> Any:
            begun.append(sum(each.state is State.SERVING for each in engines))
            return await send(call, deadline_s=deadline_s)

        engine.adapter.send = counted
    await at_once([(engine, Pause("abort")) for engine in engines])
    assert begun[0] > PER_TURN, "nothing was sent before all had begun"


async def test_a_cancellation_while_they_begin_reaches_those_that_did_and_keeps_the_rest_from_it() -> None:
    engines = await many(3 * PER_TURN)
    begun = asyncio.Event()

    async def hangs(call: Any, *, deadline_s: float) -> Any:
        begun.set()
        await asyncio.Event().wait()

    for engine in engines:
        engine.adapter.send = hangs
    pausing = asyncio.ensure_future(at_once([(engine, Pause("abort")) for engine in engines]))
    await begun.wait()
    pausing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pausing
    states = {engine.state for engine in engines}
    assert State.PAUSING not in states, "none is left in the middle of its command"
    assert engines[-1].state is State.SERVING, "a command began after the caller had given up"


async def test_each_waits_for_the_others_for_no_longer_than_its_own_deadline() -> None:
    parties = await many(4)
    together, ended = Collective(None, parties), dict[str, float]()

    async def wait(name: str, deadline_s: float) -> None:
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            await together.arrive(name, deadline_s=deadline_s)
        ended[name] = time.monotonic() - begun

    async with asyncio.timeout(5):
        await asyncio.gather(wait("e0", 0.3), wait("e1", 0.1), wait("e2", 0.2))
    assert list(ended) == ["e1", "e2", "e0"]
    assert 0.1 <= ended["e1"] < 0.2 <= ended["e2"] < 0.3 <= ended["e0"]


async def test_one_that_gives_up_or_comes_late_takes_nothing_from_the_others() -> None:
    parties = await many(3)
    together = Collective(None, parties)
    first = asyncio.ensure_future(together.arrive("e0", deadline_s=30))
    second = asyncio.ensure_future(together.arrive("e1", deadline_s=30))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not second.done()
    await together.arrive("e2", deadline_s=30)
    await second
    assert together._timer is None, "a timer that is left keeps what it is about"


async def test_a_failure_is_told_to_those_who_wait_and_to_those_who_come() -> None:
    parties = await many(3)
    together = Collective(None, parties)
    waits = asyncio.ensure_future(together.arrive("e0", deadline_s=30))
    await asyncio.sleep(0)
    together.fail(RuntimeError("it burns"), who="e1")
    for late in (waits, together.arrive("e2", deadline_s=30)):
        with pytest.raises(CollectiveFailed, match="the others are not ready: e1: it burns"):
            await late


#: Objects that the garbage collector sees of an engine whose release waits for the others. All engines of a fleet wait
#: at once, and each full collection walks through all of it. It was 62 when each had a timeout and a shield.
WAITING = 52


async def test_an_engine_that_waits_for_the_others_takes_few_objects() -> None:
    count = 3 * PER_TURN
    fleet, _ = await fleet_of(*(f"e{number}" for number in range(count)))
    await fleet.pause()
    await fleet.drain()
    gc.collect()
    before, seen = len(gc.get_objects()), list[int]()
    arrive = Collective.arrive

    async def counted(self: Collective, name: str, *, deadline_s: float) -> None:
        if len(self._waiting) == count - 1:
            gc.collect()
            seen.append(len(gc.get_objects()) - before)
        await arrive(self, name, deadline_s=deadline_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collective, "arrive", counted)
        await fleet.release(weights=V1)
    assert seen, "nobody waited"
    assert seen[0] / count < WAITING, f"{seen[0] / count:.1f} objects an engine"
