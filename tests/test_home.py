"""Calls of an engine in this process run at its home, each to its end: a caller that gives up does not end them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
from lifecycle.adapters.home import Home, HomeClosed, HomeLoop, HomeThread, LentLoop, Outcome

LONG = 5.0
Kind = str
KINDS = pytest.mark.parametrize("kind", ["thread", "loop elsewhere", "loop here", "lent loop", "lent loop that runs"])


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LONG)
        loop.close()


@contextmanager
def home_of(kind: Kind) -> Iterator[Home]:
    """A home of this kind, closed afterwards."""
    homes: dict[str, Callable[[], Home]] = {
        "thread": lambda: HomeThread("e"),
        "loop here": lambda: HomeLoop(asyncio.get_running_loop(), "e"),
    }
    if kind in homes:
        home = homes[kind]()
        yield home
        home.close()
    elif kind == "lent loop":
        loop = asyncio.new_event_loop()
        home = LentLoop(lambda: loop, "e")
        yield home
        home.close()
        loop.close()
    else:
        with running_loop() as loop:
            home = HomeLoop(loop, "e") if kind == "loop elsewhere" else LentLoop(lambda: loop, "e")
            yield home
            home.close()


class Held:
    """A call that runs until it is let go, whichever the kind of its home."""

    def __init__(self, kind: Kind, value: object = "done") -> None:
        self.begun, self._let_go, self.ended = threading.Event(), threading.Event(), False
        self.where: list[int] = []
        self.call: Callable[[], Any] = self._blocking if kind == "thread" else self._awaiting
        self._value = value

    def _blocking(self) -> object:
        self.where.append(threading.get_ident())
        self.begun.set()
        assert self._let_go.wait(LONG)
        self.ended = True
        return self._value

    async def _awaiting(self) -> object:
        self.where.append(threading.get_ident())
        self.begun.set()
        async with asyncio.timeout(LONG):
            while not self._let_go.is_set():  # noqa: ASYNC110 - set by another thread
                await asyncio.sleep(0.002)
        self.ended = True
        return self._value

    def let_go(self) -> None:
        self._let_go.set()

    async def has_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, LONG)


def called(kind: Kind, function: Callable[[], object]) -> Callable[[], Any]:
    """This function as a call of a home of this kind."""
    if kind == "thread":
        return function

    async def call() -> object:
        return function()

    return call


@KINDS
async def test_what_a_call_returns_or_raises_is_a_value(kind: Kind) -> None:
    def refuses() -> object:
        raise ValueError("no")

    with home_of(kind) as home:
        assert await home.run(called(kind, lambda: 7), LONG) == Outcome(7)
        refused = await home.run(called(kind, refuses), LONG)
    assert refused is not None
    assert repr(refused.error) == "ValueError('no')"


@KINDS
async def test_one_that_outlasts_its_deadline_runs_on_and_is_waited_for(kind: Kind) -> None:
    with home_of(kind) as home:
        held = Held(kind)
        assert await home.run(held.call, 0.05) is None
        assert not await home.all_ended(0.05)
        held.let_go()
        assert await home.all_ended(LONG)
        assert held.ended


@KINDS
async def test_a_cancelled_caller_returns_after_its_call_has_ended(kind: Kind) -> None:
    with home_of(kind) as home:
        held = Held(kind)
        caller = asyncio.ensure_future(home.run(held.call, LONG))
        await held.has_begun()
        caller.cancel()
        await asyncio.sleep(0)
        caller.cancel()
        done, _ = await asyncio.wait({caller}, timeout=0.05)
        assert not done
        assert not held.ended
        held.let_go()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert held.ended


@KINDS
async def test_all_calls_run_in_one_thread(kind: Kind) -> None:
    with home_of(kind) as home:
        where = {(await home.run(called(kind, threading.get_ident), LONG) or Outcome()).value for _ in range(3)}
    assert len(where) == 1
    assert (where == {threading.get_ident()}) is (kind == "loop here")


async def test_all_calls_that_were_begun_are_waited_for() -> None:
    """Each loop home runs calls beside each other: the last one that ended says nothing of the first."""
    with home_of("loop elsewhere") as home:
        first, second = Held("loop"), Held("loop")
        assert await home.run(first.call, 0.05) is None
        assert await home.run(second.call, 0.05) is None
        second.let_go()
        assert not await home.all_ended(0.05)
        first.let_go()
        assert await home.all_ended(LONG)


@KINDS
async def test_a_call_that_is_not_joined_is_not_waited_for(kind: Kind) -> None:
    with home_of(kind) as home:
        held = Held(kind)
        assert await home.run(held.call, 0.05, joined=False) is None
        assert await home.all_ended(0.0)
        assert not held.ended
        held.let_go()
        assert await home.run(called(kind, lambda: 1), LONG) == Outcome(1)


async def closed(outcome: Awaitable[Outcome | None], why: str, *, begun: bool = False) -> None:
    found = await outcome
    assert found is not None
    assert isinstance(found.error, HomeClosed), found
    assert why in str(found.error)
    assert found.error.begun is begun


async def test_nothing_is_begun_where_nobody_runs_the_loop() -> None:
    loop, ran = asyncio.new_event_loop(), list[int]()
    home = HomeLoop(loop, "e")
    await closed(home.run(called("loop", lambda: ran.append(1)), LONG), "the event loop of e does not run")
    loop.close()
    await closed(home.run(called("loop", lambda: ran.append(1)), LONG), "the event loop of e does not run")
    assert not ran
    assert await home.all_ended(0.0)


async def test_nothing_is_begun_on_a_lent_loop_that_is_closed() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    home = LentLoop(lambda: loop, "e")
    await closed(home.run(called("loop", lambda: 1), LONG), "the event loop of e is closed")
    home.close()


@pytest.mark.parametrize("kind", ["thread", "loop here", "lent loop"])
async def test_nothing_is_begun_after_the_close(kind: Kind) -> None:
    with home_of(kind) as home:
        assert await home.run(called(kind, lambda: 1), LONG) == Outcome(1)
        home.close()
        await closed(home.run(called(kind, lambda: 2), LONG), "closed")


async def test_a_loop_that_ends_cuts_its_calls_off() -> None:
    """`asyncio.run` cancels what is left when its main coroutine has returned."""
    homes, let_go = Future[HomeLoop](), threading.Event()

    async def main() -> None:
        homes.set_result(HomeLoop(asyncio.get_running_loop(), "e"))
        await asyncio.to_thread(let_go.wait, LONG)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    home = await asyncio.wrap_future(homes)
    held = Held("loop")
    running = asyncio.ensure_future(home.run(held.call, LONG))
    await held.has_begun()
    let_go.set()
    await closed(running, "its event loop ended, and cut it off", begun=True)
    await asyncio.to_thread(thread.join, LONG)
    assert not held.ended


async def test_a_lent_loop_runs_on_where_who_ran_it_stops() -> None:
    """A blocking generate runs the loop for its own time; a call that began on it meanwhile goes on all the same."""
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(stop.wait(),))
    thread.start()
    home, held = LentLoop(lambda: loop, "e"), Held("loop")
    running = asyncio.ensure_future(home.run(held.call, LONG))
    await held.has_begun()
    assert held.where == [thread.ident]
    loop.call_soon_threadsafe(stop.set)
    await asyncio.to_thread(thread.join, LONG)
    held.let_go()
    assert await running == Outcome("done")
    home.close()
    loop.close()


def test_a_call_that_hangs_does_not_keep_the_program_from_ending() -> None:
    program = """
        import asyncio, threading
        from lifecycle.adapters.home import HomeThread

        print(asyncio.run(HomeThread("e").run(threading.Event().wait, 0.05)))
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=30, check=True
    )
    assert ended.stdout == "None\n"
