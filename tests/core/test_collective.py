"""What several engines do together or not at all: how it ends, and who is told, whatever comes at the same moment."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from lifecycle.core.sources import Pushed
from lifecycle.engine.collective import Collective, CollectiveFailed


def parties(count: int) -> list[Any]:
    return [SimpleNamespace(name=f"e{number}") for number in range(count)]


class Push:
    """A push that counts how often it began, and ends once it is told to."""

    def __init__(self) -> None:
        self.begun = 0
        self.end = asyncio.Event()

    async def __call__(self, engines: Sequence[Any]) -> None:
        self.begun += 1
        await self.end.wait()


async def waiting(together: Collective, *names: str) -> list[asyncio.Task[None]]:
    """Tasks that wait in it."""
    tasks = [asyncio.create_task(together.arrive(name, deadline_s=30)) for name in names]
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    return tasks


async def test_each_who_waits_raises_an_exception_of_its_own() -> None:
    """A traceback grows by the frames of all who raise one and the same: with 10,000 engines, by 10,000 times those."""
    together = Collective(None, parties(4))
    waits = await waiting(together, "e1", "e2", "e3")
    burns = RuntimeError("it burns")
    together.fail(burns, who="e0")
    raised = await asyncio.gather(*waits, together.arrive("e0", deadline_s=30), return_exceptions=True)
    assert [type(each) for each in raised] == [CollectiveFailed] * 4
    assert len({id(each) for each in raised}) == 4
    assert {each.__cause__ for each in raised if isinstance(each, CollectiveFailed)} == {burns}
    assert all(len(traceback.extract_tb(each.__traceback__)) <= 3 for each in raised if each is not None)


@pytest.mark.parametrize("fails", [False, True])
async def test_one_whose_deadline_passes_as_the_others_end_is_told_how_they_ended(fails: bool) -> None:
    """Whoever waited is woken as late, and before it runs the last one arrives, or fails."""
    together = Collective(None, parties(2))
    (waits,) = await waiting(together, "e0")
    assert together._timer is not None
    together._late(together._timer.when())
    if fails:
        together.fail(RuntimeError("it burns"), who="e1")
        with pytest.raises(CollectiveFailed, match="it burns"):
            await waits
    else:
        await together.arrive("e1", deadline_s=30)  # all are there: it goes on at once
        await waits


async def test_one_that_is_cancelled_as_its_deadline_passes_is_cancelled() -> None:
    together = Collective(None, parties(2))
    (waits,) = await waiting(together, "e0")
    assert together._timer is not None
    when = together._timer.when()
    waits.cancel()
    together._late(when)
    with pytest.raises(asyncio.CancelledError):
        await waits


async def test_what_fails_once_all_were_ready_is_told_to_nobody() -> None:
    """They went on together: what the first of them met afterwards is its own."""
    together = Collective(None, parties(2))
    (waits,) = await waiting(together, "e0")
    await together.arrive("e1", deadline_s=30)
    together.fail(RuntimeError("its call was refused"), who="e1")
    await waits


async def test_the_first_failure_is_the_one_that_is_told() -> None:
    together = Collective(None, parties(3))
    together.fail(RuntimeError("it burns"), who="e0")
    together.fail(RuntimeError("it was cancelled for that"), who="e1")
    with pytest.raises(CollectiveFailed, match="e0: it burns"):
        await together.arrive("e2", deadline_s=30)


async def test_nothing_is_pushed_once_one_that_was_ready_has_given_up() -> None:
    push = Push()
    together = Collective(Pushed(push, "v1"), parties(2))
    (waits,) = await waiting(together, "e0")
    waits.cancel()
    together.fail(asyncio.CancelledError(), who="e0")
    with pytest.raises(CollectiveFailed, match="the push failed for every engine: e0: CancelledError"):
        await together.arrive("e1", deadline_s=30)
    await asyncio.sleep(0)
    assert push.begun == 0


async def test_it_is_pushed_once_whoever_comes_meanwhile() -> None:
    push = Push()
    together = Collective(Pushed(push, "v1"), parties(2))
    tasks = await waiting(together, "e0", "e1", "e1")
    push.end.set()
    await asyncio.gather(*tasks)
    await together.arrive("e0", deadline_s=30)
    assert push.begun == 1


async def test_a_push_that_ends_after_it_was_given_up_changes_nothing() -> None:
    """A callback may take its cancellation for an end."""
    together: Collective

    async def push(engines: Sequence[Any]) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    together = Collective(Pushed(push, "v1"), parties(1))
    (waits,) = await waiting(together, "e0")
    await asyncio.sleep(0)
    together.fail(RuntimeError("it burns"), who="e0")
    for late in (waits, together.arrive("e0", deadline_s=30)):
        with pytest.raises(CollectiveFailed, match="it burns"):
            await late


class Ends(BaseException):
    """As what ends a program: it is no failure of a push."""


async def test_what_ends_the_program_in_a_push_is_not_taken_for_its_failure_alone() -> None:
    async def push(engines: Sequence[Any]) -> None:
        raise Ends

    together = Collective(Pushed(push, "v1"), parties(1))
    with pytest.raises(CollectiveFailed, match="the trainer: Ends"):
        await together.arrive("e0", deadline_s=30)
    assert together._pushing is not None
    with pytest.raises(Ends):
        await together._pushing


async def test_a_push_that_was_bound_to_nothing_says_how_it_is() -> None:
    together = Collective(Pushed(None, "v1", name="p"), parties(1))
    with pytest.raises(CollectiveFailed, match=r"the trainer: .* give it one: source\.bind\(callback\)"):
        await together.arrive("e0", deadline_s=30)


def test_nobody_does_nothing_together() -> None:
    with pytest.raises(ValueError, match="a collective needs at least one engine"):
        Collective(None, [])
