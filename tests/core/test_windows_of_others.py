"""An engine in a window is the trainer's also between two of its steps: what others ensure waits for the window."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from rig import V1, V2, fleet_of, new_engine, states

from lifecycle import Engine, EngineBusy, Fleet, State, sync
from lifecycle.engine.windows import INSIDE
from lifecycle.testing import QUICK

ENSURED = {
    "fleet": lambda fleet, limit_s: fleet.ensure("serving", deadline_s=limit_s),
    "engine": lambda fleet, limit_s: fleet["a"].ensure("serving", deadline_s=limit_s),
}
EVERY = pytest.mark.parametrize("how", ENSURED)
#: Nothing that was seen before serves.
LOOKS = replace(QUICK, evidence_max_age_s=0.0)


class Watcher:
    """A task that began before any window, and does what it is told in its own context."""

    def __init__(self) -> None:
        self._asked: asyncio.Queue[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]]] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            work, done = await self._asked.get()
            try:
                done.set_result(await work())
            except Exception as error:
                done.set_exception(error)

    def does(self, work: Callable[[], Awaitable[Any]]) -> asyncio.Future[Any]:
        done = asyncio.get_running_loop().create_future()
        self._asked.put_nowait((work, done))
        return done

    async def __aenter__(self) -> Watcher:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()


async def some_turns() -> None:
    for _ in range(200):
        await asyncio.sleep(0)


@EVERY
async def test_what_another_task_ensures_waits_until_the_window_was_left(how: str) -> None:
    fleet, journal = await fleet_of("a", "b")
    async with Watcher() as watcher:
        async with fleet.offloaded(weights=V1):
            journal.clear()
            serving = watcher.does(lambda: ENSURED[how](fleet, 60.0))
            await some_turns()
            assert not serving.done()
            assert states(fleet) == {"a": "released", "b": "released"}
            assert journal.calls() == []
        assert await serving == [], "the window brought them back"
        assert states(fleet) == {"a": "serving", "b": "serving"}


@EVERY
@pytest.mark.virtual_time
async def test_a_window_that_is_not_left_is_waited_for_until_the_deadline(how: str) -> None:
    fleet, journal = await fleet_of("a", "b")
    loop = asyncio.get_running_loop()
    async with Watcher() as watcher, fleet.offloaded(weights=V1) as window:
        await window.restore_weights()
        journal.clear()
        began_s = loop.time()
        with pytest.raises(EngineBusy, match=r"offloaded\(\) of another task is under way"):
            await watcher.does(lambda: ENSURED[how](fleet, 1.0))
        assert 0.9 < loop.time() - began_s < 1.5
        assert journal.calls() == []
        assert states(fleet) == {"a": "weights_restored", "b": "weights_restored"}


@EVERY
async def test_the_trainer_and_the_tasks_that_it_began_ensure_what_they_want(how: str) -> None:
    fleet, _ = await fleet_of("a")
    for within in (lambda work: work, asyncio.create_task):
        async with fleet.offloaded(weights=V1):
            await within(ENSURED[how](fleet, 5.0))
            assert states(fleet) == {"a": "serving"}
    assert INSIDE.get() == frozenset()


async def test_a_window_of_other_engines_is_not_waited_for() -> None:
    fleet, _ = await fleet_of("a", "b")
    async with Watcher() as watcher, fleet.offloaded(weights=V1, engines=["a"]):
        done = await watcher.does(lambda: fleet.ensure("released", weights=V1, engines=["b"], deadline_s=5.0))
        assert [each.engine for each in done] == ["b"]


async def test_who_is_inside_of_one_window_is_not_inside_of_the_next() -> None:
    fleet, _ = await fleet_of("a")
    async with fleet.offloaded(weights=V1):
        watcher = Watcher()
        await watcher.does(lambda: ENSURED["fleet"](fleet, 5.0))
    async with watcher:
        async with fleet.offloaded(weights=V1):
            serving = watcher.does(lambda: ENSURED["fleet"](fleet, 60.0))
            await some_turns()
            assert not serving.done()
            assert fleet["a"].state is State.RELEASED
        await serving


async def test_windows_beside_each_other_are_two() -> None:
    fleet, _ = await fleet_of("a", "b")
    async with fleet.offloaded(weights=V1, engines=["a"]):
        async with fleet.offloaded(weights=V1, engines=["b"]):
            assert len(INSIDE.get()) == 2
        assert len(INSIDE.get()) == 1
        await fleet["a"].ensure("serving", deadline_s=5.0)
    assert INSIDE.get() == frozenset()


async def test_a_window_that_another_task_left_is_forgotten_with_the_next() -> None:
    fleet, _ = await fleet_of("a")
    window = fleet.offloaded(weights=V1)
    await window.__aenter__()
    (first,) = INSIDE.get()
    await asyncio.create_task(window.__aexit__(None, None, None))
    async with fleet.offloaded(weights=V1):
        assert len(INSIDE.get()) == 1
        assert first not in INSIDE.get()


def holds_verify(engine: Engine) -> tuple[asyncio.Event, asyncio.Event]:
    """Its next verification ends when the second event is set, and sets the first when it has begun."""
    begun, goes_on, verify = asyncio.Event(), asyncio.Event(), engine.verify

    async def held(**how: Any) -> State:
        engine.verify = verify
        state = await verify(**how)
        begun.set()
        await goes_on.wait()
        return state

    engine.verify = held
    return begun, goes_on


@EVERY
async def test_a_window_that_begins_during_the_look_is_waited_for_too(how: str) -> None:
    fleet, _ = await fleet_of("a", "b", policy=LOOKS)
    await fleet.pause()
    async with Watcher() as watcher:
        begun, goes_on = holds_verify(fleet["a"])
        serving = watcher.does(lambda: ENSURED[how](fleet, 60.0))
        await begun.wait()
        async with fleet.offloaded(weights=V2):
            goes_on.set()
            await some_turns()
            assert not serving.done()
            assert states(fleet) == {"a": "released", "b": "released"}
        assert await serving == []


async def test_a_window_that_begins_between_two_commands_is_waited_for_too() -> None:
    fleet, _ = await fleet_of("a")
    await fleet.offload(weights=V1)
    engine = fleet["a"]
    execute, begun, goes_on = engine.execute, asyncio.Event(), asyncio.Event()

    async def held(*args: Any, **how: Any) -> Any:
        engine.execute = execute
        done = await execute(*args, **how)
        begun.set()
        await goes_on.wait()
        return done

    engine.execute = held
    async with Watcher() as watcher:
        serving = watcher.does(lambda: engine.ensure("serving", deadline_s=60.0))
        await begun.wait()
        assert engine.state is State.WEIGHTS_RESTORED
        async with fleet.offloaded(weights=V2):
            goes_on.set()
            await some_turns()
            assert (serving.done(), engine.state) == (False, State.RELEASED)
        await serving
    assert engine.weights_version == "v2"


# recover


async def test_a_recovery_to_a_state_waits_for_the_window_too() -> None:
    fleet, journal = await fleet_of("a", "b")
    async with Watcher() as watcher:
        async with fleet.offloaded(weights=V1, engines=["a"]):
            journal.clear()
            recovering = watcher.does(lambda: fleet.recover(to="serving", deadline_s=60.0))
            await some_turns()
            assert not recovering.done()
            assert journal.calls() == []
        found = await recovering
    assert {name: each.state for name, each in found.items()} == {"a": "serving", "b": "serving"}


@pytest.mark.virtual_time
async def test_at_its_deadline_it_says_of_whom_the_trainer_has_the_memory_and_goes_on_with_the_others() -> None:
    fleet, _ = await fleet_of("a", "b")
    await fleet.pause(engines=["b"])
    async with Watcher() as watcher, fleet.offloaded(weights=V1, engines=["a"]):
        found = await watcher.does(lambda: fleet.recover(to="serving", deadline_s=1.0))
        assert states(fleet) == {"a": "released", "b": "serving"}
        assert "offloaded() of another task is under way" in found["a"].reason
        assert found["b"].state is State.SERVING
        inside = await fleet.recover(to="serving", deadline_s=1.0)
        assert inside["a"].state is State.SERVING


@pytest.mark.virtual_time
async def test_a_window_that_begins_while_it_finds_out_is_left_alone() -> None:
    fleet, _ = await fleet_of("a", "b")
    fleet["b"]._session.go("contradicted", reason="a test")
    recover, begun, goes_on = fleet["b"].recover, asyncio.Event(), asyncio.Event()

    async def held(**how: Any) -> Any:
        begun.set()
        await goes_on.wait()
        return await recover(**how)

    fleet["b"].recover = held
    async with Watcher() as watcher:
        recovering = watcher.does(lambda: fleet.recover(to="serving", deadline_s=1.0))
        await begun.wait()
        async with fleet.offloaded(weights=V1, engines=["a"]):
            goes_on.set()
            found = await recovering
            assert fleet["a"].state is State.RELEASED
            assert "another task" in found["a"].reason


# the blocking API


def test_a_thread_is_inside_of_the_windows_that_it_opened() -> None:
    fleet = sync.Fleet(Fleet([new_engine("a")], policy=QUICK), sync.Loop())
    refused: list[BaseException] = []

    def watches() -> None:
        try:
            fleet.ensure("serving", deadline_s=0.2)
        except EngineBusy as busy:
            refused.append(busy)

    with fleet:
        with fleet.offloaded(weights=V1) as window:
            assert fleet.ensure("released", deadline_s=5.0) == []
            other = threading.Thread(target=watches)
            other.start()
            other.join()
            assert len(refused) == 1
            assert fleet["a"].state is State.RELEASED
            fleet.ensure("weights_restored", deadline_s=5.0)
            assert window == list(window.transitions)
            assert window == window
            assert window != []
        assert INSIDE.get() == frozenset()
        with pytest.raises(ZeroDivisionError), fleet.offloaded(weights=V1):
            _ = 1 / 0
        assert INSIDE.get() == frozenset()
