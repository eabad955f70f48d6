"""The explorer walks what it says, tells states apart that have different futures, and comes to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clockwork import Apart
from explore import Found, Scenario, follow, repeated, walk
from model_page import page
from model_run import Job, write_trace
from scenarios import all_of
from story import as_test
from truth import TrueEngine
from world import Deed, Violation, World

from lifecycle.core.record import Record
from lifecycle.testing import capabilities

pytestmark = pytest.mark.changes_the_table


def nothing(world: World) -> None:
    """Nothing is checked."""


class Noted(Apart, set[Any]):
    """What a test notes of all runs; it is no part of a run's state."""


def toy(play: Any, *, budget: int = 0, check: Any = nothing) -> Scenario:
    return Scenario("toy", play, check, budget)


def engine(world: World, name: str) -> None:
    world.truth.engines[name] = TrueEngine(name, capabilities())


async def asks(world: World, who: str, what: str = "step", act: Callable[[Any], Any] = lambda model: None) -> None:
    engine(world, who)
    await world.ask(who, who, what, act)


def test_the_plain_course_is_one_run() -> None:
    found = walk(all_of(1, 0)["faults of calls"])
    assert (found.runs, found.violation, found.complete) == (1, "", True)
    assert found.states > 30


def test_every_order_of_three_steps_is_walked() -> None:
    orders = Noted()

    async def play(world: World) -> None:
        came: list[str] = []
        world.roots.append(came)
        await asyncio.gather(
            *(world.begin(name, asks(world, name, act=lambda model: came.append(model.name))).task for name in "abc")
        )
        orders.add(tuple(came))

    assert walk(toy(play, budget=0)).runs == 1
    orders.clear()
    walk(toy(play, budget=9))
    assert len({order for order in orders if len(order) == 3}) == 6


def test_orders_that_come_to_one_state_go_on_once() -> None:
    async def play(world: World) -> None:
        await asyncio.gather(*(world.begin(name, asks(world, name)).task for name in "abcd"))
        await world.begin("z", asks(world, "z")).task

    found = walk(toy(play, budget=3))
    assert found.complete
    assert found.runs > 4 * 3 * 2, "every order is begun"
    assert found.states <= 2**4 + 1, "and goes on from each set of answers once, in whichever order these came"


def test_equal_records_with_different_futures_are_both_walked() -> None:
    """Two tasks of one driver ask the same. Whichever is answered first, Records, truth and questions are equal then.

    What differs is which of the two waits still: it decides what the driver says in the end.
    """
    record, told, prints = Record(), Noted(), dict[str, set[Any]]()

    async def play(world: World) -> None:
        engine(world, "e")

        async def first(known: Record) -> str:
            await world.ask("a", "e", "step", lambda model: None)
            return "first"

        async def second(known: Record) -> str:
            await world.ask("a", "e", "step", lambda model: None)
            return "second"

        async def drives() -> None:
            both = {asyncio.ensure_future(first(record)), asyncio.ensure_future(second(record))}
            _, left = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            told.add(await left.pop())

        await world.begin("a", drives()).task

    def check(world: World) -> None:
        if len(world.pending) == 1:
            truth = [each.standing() for each in world.truth.engines.values()]
            prints.setdefault(f"{record} {truth} {world.pending[0]}", set()).add(world.fingerprint())

    assert walk(toy(play, budget=1, check=check)).complete
    assert told == {"first", "second"}
    assert [len(each) for each in prints.values()] == [2], "equal but for where the tasks stand, and told apart"


def test_where_nothing_can_happen_any_more_that_is_a_violation() -> None:
    async def play(world: World) -> None:
        await asyncio.Event().wait()

    assert "nothing can happen any more" in walk(toy(play)).violation


def test_a_violation_tells_its_story_and_can_be_repeated() -> None:
    async def play(world: World) -> None:
        world.deeds["it breaks"] = Deed(lambda: world.wrong.append("broken"))
        await world.begin("a", asks(world, "a")).task

    def check(world: World) -> None:
        if world.wrong:
            raise Violation("it is broken")

    scenario = toy(play, budget=1, check=check)
    found = walk(scenario)
    assert "it breaks" in found.violation
    assert "it is broken" in str(repeated(scenario, follow(found.path)))
    assert str(repeated(scenario, follow(()))) == ""


def test_a_driver_that_was_killed_runs_no_more() -> None:
    came: list[str] = []

    async def play(world: World) -> None:
        async def goes_on() -> None:
            try:
                async with asyncio.timeout(5):
                    await asks(world, "a")
            finally:
                came.append("ran")

        driver = world.begin("a", goes_on())
        world.deeds["a is killed"] = Deed(lambda: world.kill("a"))
        await world.until_all_ended()
        if not driver.alive:
            assert came == []
        came.clear()

    walk(toy(play, budget=1))


def test_what_somebody_else_did_is_excused_until_an_answer_shows_it() -> None:
    world = World(lambda world, options: 0, nothing, budget=0)
    engine(world, "e")
    world.host = type("Host", (), {"about": lambda self, who, engine: "the same"})()
    read: Callable[[TrueEngine], Any] = lambda model: model.admission  # noqa: E731
    released: Callable[[TrueEngine], Any] = lambda model: model.apply("release", {"tags": ["weights"]})  # noqa: E731
    world.truth.somebody_else("e", lambda model: model.apply("pause", {"mode": "abort"}), ["a", "b"])
    world.truth.somebody_else("e", released, ["a", "b"])
    assert world.truth.comes("a", "e", read, shown=True).told == "closed"
    unseen, seen = world.truth.shown_to("b", "e"), world.truth.shown_to("a", "e")
    assert (unseen[0].unmapped, seen[0].unmapped) == (set(), {"weights"})
    assert world.truth.comes("a", "e", released).excused is False
    world.loop.close()


def test_the_page_names_what_was_walked() -> None:
    found = walk(all_of(1, 0)["faults of calls"])
    text = page([found], 2.0, {"commit": "0123456789"})
    assert f"| faults of calls, 1 engines, 0 deviations | to the end | {found.states:,} |" in text


def test_a_trace_is_written_as_a_test(tmp_path: Path) -> None:
    scenario = all_of(1, 1)["somebody else acts"]
    found = Found(scenario.name)
    assert not write_trace({Job(1, 1, "somebody else acts", 1.0): found}, tmp_path / "none.py")
    text = as_test(_broken(), scenario.name, 1, 1, "somebody else acts")
    namespace: dict[str, Any] = {}
    exec(compile(text, "trace", "exec"), namespace)
    namespace["test_trace"]()  # the choices lead to no violation


def _broken() -> Any:
    from explore import Broken

    return Broken("it is broken", 'a story with """ and \\', (0, 0, 1))


# how far it walks


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.alone
@pytest.mark.parametrize("name", all_of(1, 1))
def test_one_engine_with_one_deviation(name: str, report: Callable[[str], None]) -> None:
    found = walk(all_of(1, 1)[name], limit_s=500.0)
    report(str(found))
    assert not found.violation, found.violation
    assert found.complete
    assert len(found.dead_ends_named()) <= MOST_DEAD_ENDS.get(name, 0)


#: The dead ends of each scenario; a number may only fall.
MOST_DEAD_ENDS: dict[str, int] = {}
