"""Calls that a user declared are made one at a time, and what becomes of each is told once, whatever they raise."""

from __future__ import annotations

import asyncio
import gc
from functools import partial
from typing import Any

import pytest
from lifecycle.adapters.home import HomeInTurn


class Ends(BaseException):
    """As what ends a program: it is no answer of an engine."""


class Complaints:
    """What the event loop says of exceptions that nobody took."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: self.said.append(what))


async def test_of_several_that_wait_for_one_call_one_begins() -> None:
    home, first, running, most = HomeInTurn(), asyncio.Event(), 0, 0

    async def call() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    tasks = [asyncio.create_task(home.run("first", first.wait, 10))]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(home.run(f"call {number}", call, 10)) for number in range(3)]
    await asyncio.sleep(0)
    first.set()
    assert [(await task).what for task in tasks] == ["returned"] * 4
    assert most == 1


async def test_all_have_ended_that_were_begun_before_though_another_has_begun_since() -> None:
    home, first, second = HomeInTurn(), asyncio.Event(), asyncio.Event()
    tasks = [asyncio.create_task(home.run(str(each), each.wait, 10)) for each in (first, second)]
    await asyncio.sleep(0)
    assert not await home.all_ended(0.01)
    ended = asyncio.create_task(home.all_ended(10))
    await asyncio.sleep(0)
    first.set()
    assert await ended
    assert home.busy, "the second has begun"
    second.set()
    await asyncio.gather(*tasks)
    assert not home.busy


async def test_one_that_waits_gives_up_at_its_own_deadline() -> None:
    home, first = HomeInTurn(), asyncio.Event()
    running = asyncio.create_task(home.run("first", first.wait, 10))
    await asyncio.sleep(0)
    assert (await home.run("second", first.wait, 0.01)).what == "waited"
    assert home.last_name == "first"
    first.set()
    assert (await running).what == "returned"


async def test_what_a_call_raised_after_its_caller_left_is_no_surprise() -> None:
    home, complaints, end = HomeInTurn(), Complaints(), asyncio.Event()

    async def call() -> None:
        await end.wait()
        raise RuntimeError("late")

    assert (await home.run("call", call, 0.01)).what == "runs"
    end.set()
    assert await home.all_ended(10)
    home._last = None
    gc.collect()
    await asyncio.sleep(0)
    assert complaints.said == []


async def test_a_call_that_was_cancelled_by_others_is_an_error_of_its_own() -> None:
    """As one has whose client of the engine was closed: its caller was not cancelled."""
    home, complaints = HomeInTurn(), Complaints()

    async def call() -> None:
        raise asyncio.CancelledError

    ended = await home.run("call", call, 10)
    assert ended.what == "cancelled"
    assert "it was cancelled, by others" in str(ended.error)
    await asyncio.sleep(0)
    assert complaints.said == []


async def test_what_ends_a_program_comes_through() -> None:
    async def call() -> None:
        raise Ends

    with pytest.raises(Ends):
        await HomeInTurn().run("call", call, 10)


class Called:
    """An object that is called as a coroutine function is."""

    async def __call__(self, value: int) -> int:
        await asyncio.sleep(0)
        return value


async def _returned(value: int) -> int:
    await asyncio.sleep(0)
    return value


@pytest.mark.parametrize("call", [partial(_returned, 3), partial(Called(), 3), partial(partial(_returned), 3)])
async def test_what_returns_an_awaitable_is_awaited_however_it_is_wrapped(call: Any) -> None:
    assert (await HomeInTurn().run("call", call, 10)).value == 3
