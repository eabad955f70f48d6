"""Whose turn it is: moves beside each other, and a change of members alone."""

from __future__ import annotations

import asyncio

import pytest

from lifecycle.core.deadline import Deadline
from lifecycle.fleet.changes import TurnNotGiven, Turns


class Stage:
    """Tasks that hold a turn until they are told to end."""

    def __init__(self) -> None:
        self.turns, self.inside = Turns(), list[str]()
        self._ends: dict[str, asyncio.Event] = {}

    async def move(self, name: str, limit_s: float | None = None) -> None:
        async with self.turns.of_move(name, limit_s):
            await self._hold(name)

    async def change(self, name: str, deadline_s: float = 60.0) -> None:
        async with self.turns.of_change(name, Deadline(deadline_s)):
            assert self.inside == []
            await self._hold(name)

    async def _hold(self, name: str) -> None:
        self.inside.append(name)
        try:
            await self._ends.setdefault(name, asyncio.Event()).wait()
        finally:
            self.inside.remove(name)

    async def end(self, name: str) -> None:
        self._ends.setdefault(name, asyncio.Event()).set()
        await self.go_on()

    async def go_on(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


async def test_a_change_waits_for_every_move_and_is_alone() -> None:
    stage = Stage()
    async with asyncio.TaskGroup() as group:
        for name in ("one", "two"):
            group.create_task(stage.move(name))
        await stage.go_on()
        group.create_task(stage.change("adopt"))
        await stage.go_on()
        assert stage.inside == ["one", "two"], "moves run beside each other"
        await stage.end("one")
        assert stage.inside == ["two"]
        await stage.end("two")
        assert stage.inside == ["adopt"]
        group.create_task(stage.move("three"))
        group.create_task(stage.change("retire"))
        await stage.go_on()
        assert stage.inside == ["adopt"]
        await stage.end("adopt")
        assert stage.inside == ["three"], "a move that waited is not kept waiting by a second change"
        await stage.end("three")
        assert stage.inside == ["retire"]
        await stage.end("retire")


async def test_a_move_inside_a_window_does_not_wait_for_a_change_that_waits_for_the_window() -> None:
    stage = Stage()
    async with asyncio.TaskGroup() as group:
        group.create_task(stage.move("window"))
        await stage.go_on()
        group.create_task(stage.change("adopt"))
        await stage.go_on()
        group.create_task(stage.move("onload"))
        await stage.go_on()
        assert stage.inside == ["window", "onload"]
        for name in ("onload", "window", "adopt"):
            await stage.end(name)


async def test_a_loop_that_moves_without_a_pause_keeps_no_change_waiting() -> None:
    stage, order = Stage(), list[str]()

    async def trains() -> None:
        for number in range(3):
            async with stage.turns.of_move("window", None):
                order.append(f"step {number}")
                await stage.go_on()

    async def changes() -> None:
        async with stage.turns.of_change("adopt", Deadline(5.0)):
            order.append("adopt")

    async with asyncio.TaskGroup() as group:
        group.create_task(trains())
        await asyncio.sleep(0)
        group.create_task(changes())
    assert order == ["step 0", "adopt", "step 1", "step 2"]


@pytest.mark.virtual_time
@pytest.mark.parametrize("waits", ["change", "move"])
async def test_who_gives_up_waiting_keeps_nobody(waits: str) -> None:
    stage = Stage()
    async with asyncio.TaskGroup() as group:
        group.create_task(stage.move("offload") if waits == "change" else stage.change("adopt"))
        await stage.go_on()
        with pytest.raises(TurnNotGiven, match="offload" if waits == "change" else "adopt"):
            await (stage.change("retire", 0.1) if waits == "change" else stage.move("onload", 0.1))
        await stage.end("offload" if waits == "change" else "adopt")
        group.create_task(stage.change("last"))
        await stage.go_on()
        assert stage.inside == ["last"]
        await stage.end("last")


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("waits", ["change", "move"])
async def test_who_is_cancelled_while_waiting_keeps_nobody(waits: str, given: bool) -> None:
    """`given`: the turn was given to it in the same moment, before it could run."""
    stage = Stage()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(stage.move("first") if waits == "change" else stage.change("first"))
        await stage.go_on()
        waiting = asyncio.create_task(stage.change("second") if waits == "change" else stage.move("second"))
        await stage.go_on()
        if given:
            stage._ends["first"].set()
            while not first.done():  # noqa: ASYNC110 - the turn is given while it ends
                await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await stage.end("first")
        group.create_task(stage.change("last"))
        await stage.go_on()
        assert stage.inside == ["last"]
        await stage.end("last")
