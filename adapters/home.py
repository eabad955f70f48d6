"""Where the calls of an engine in this process run: in one thread, or on one event loop. None is cancelled.

An object that is driven in this process is at home somewhere: calls from elsewhere race, or never return. A call that
has begun always runs to its end. A caller whose deadline passes stops waiting for it, and `all_ended` waits for it. A
caller that is cancelled still waits until it has ended or the deadline has passed, since the call cannot be undone.
Calls that a user declared (`HomeInTurn`) are at home nowhere: they are made one at a time.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Literal

from lifecycle.core.deadline import Deadline
from lifecycle.nodes.in_thread import in_thread

#: Seconds between two checks whether somebody else, who ran a loop, has stopped running it.
TURN_S = 0.05


class HomeClosed(Exception):
    """The thread or loop in which calls run is closed, or does not run. `begun`: the call was cut off."""

    def __init__(self, why: str, *, begun: bool = False) -> None:
        super().__init__(why)
        self.begun = begun


@dataclass(frozen=True, slots=True)
class Outcome:
    """The value that a call returned, or the exception that it raised."""

    value: Any = None
    error: Exception | None = None


class Home(ABC):
    """Runs calls in its own way, and knows which of them still run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._running: set[Future[Outcome]] = set()

    async def run(self, work: Callable[[], Any], deadline_s: float, *, joined: bool = True) -> Outcome | None:
        """Runs `work` and returns its outcome; None where it still runs at the deadline, and then it runs on.

        `all_ended` waits for no call that is not `joined`: one whose effect is there though its answer is not.
        """
        begun = self._begin(work)
        if joined:
            self._running = {each for each in self._running if not each.done()} | {begun}
        return await _join(begun, deadline_s)

    async def all_ended(self, deadline_s: float) -> bool:
        """Waits for every call begun before; False where one still runs at the deadline."""
        end = time.monotonic() + deadline_s
        for each in tuple(self._running):
            await _join(each, end - time.monotonic())
        return all(each.done() for each in self._running)

    async def aclose(self, deadline_s: float) -> None:
        """Closes it once the calls that were begun have ended; leaves it where one still runs at the deadline."""
        if await self.all_ended(deadline_s):
            await asyncio.to_thread(self.close)

    @abstractmethod
    def _begin(self, work: Callable[[], Any]) -> Future[Outcome]:
        """The call has begun, or waits for its turn."""

    @abstractmethod
    def close(self) -> None:
        """No call is begun any more. Those that were begun have ended, where their thread is this home's own."""


class HomeThread(Home):
    """One thread in which calls run one after another. One that hangs does not keep the program from ending.

    `prepare` runs in it before the first.
    """

    def __init__(self, name: str, prepare: Callable[[], object] = lambda: None) -> None:
        super().__init__(name)
        self._prepare = prepare
        self._inbox: SimpleQueue[tuple[Callable[[], Any], Future[Outcome]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=f"lifecycle-{name}", daemon=True)
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Ends the thread once the calls that were begun have ended."""
        with self._lock:
            started, self._closed = self._thread.ident is not None, True
        if started:
            self._inbox.put(None)
            self._thread.join()

    def _begin(self, work: Callable[[], Any]) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        with self._lock:
            if self._closed:
                return _not_begun(f"the thread of {self.name} is closed")
            if self._thread.ident is None:
                self._thread.start()
            self._inbox.put((work, future))
        return future

    def _serve(self) -> None:
        self._prepare()
        while (asked := self._inbox.get()) is not None:
            work, future = asked
            try:
                future.set_result(_outcome_of(work))
            except BaseException as error:
                future.set_exception(error)
            del asked, work, future  # what a call returned may be large


class HomeLoop(Home):
    """An event loop that somebody runs, in any thread. A call is a function that returns an awaitable there.

    Calls run beside each other, as their own coroutines do.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        super().__init__(name)
        self.loop = loop
        self._closed = False

    def close(self) -> None:
        """No call is begun any more. The loop is somebody else's, and left as it is."""
        self._closed = True

    def _begin(self, work: Callable[[], Awaitable[Any]]) -> Future[Outcome]:
        if self._closed or not self.loop.is_running():
            return _not_begun(f"the event loop of {self.name} does not run" if not self._closed else "it is closed")
        return _scheduled(work, self.loop) or _not_begun(f"the event loop of {self.name} is closed")


class LentLoop(HomeThread):
    """An event loop that runs only while somebody waits for one of its coroutines. Calls run one after another.

    Where nobody runs it, this home's thread does, for the time of the call. `loop_of` says which loop it is: an object
    may be bound to one by its first use only.
    """

    def __init__(self, loop_of: Callable[[], asyncio.AbstractEventLoop], name: str) -> None:
        super().__init__(name)
        self._loop_of = loop_of

    def _begin(self, work: Callable[[], Awaitable[Any]]) -> Future[Outcome]:
        return super()._begin(lambda: self._completed(work))

    def _completed(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """What the coroutine returned. Who ran the loop may stop in the middle; then it is run on from here."""
        loop = self._loop_of()
        future = _scheduled(work, loop)
        while future is not None and not future.done() and not loop.is_closed():
            if loop.is_running():
                wait([future], timeout=TURN_S)
                continue
            with suppress(RuntimeError):  # somebody else runs it since, or has closed it
                loop.run_until_complete(asyncio.wrap_future(future, loop=loop))
        if future is None or not future.done():
            raise HomeClosed(f"the event loop of {self.name} is closed", begun=future is not None)
        outcome = future.result()
        if outcome.error is not None:
            raise outcome.error
        return outcome.value


def _scheduled(work: Callable[[], Awaitable[Any]], loop: asyncio.AbstractEventLoop) -> Future[Outcome] | None:
    """The coroutine on that loop, which may begin to run it later; None where it is closed."""
    coroutine = _awaited(work)
    try:
        return asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:
        coroutine.close()
        return None


async def _awaited(work: Callable[[], Awaitable[Any]]) -> Outcome:
    """What came of it. Nobody but the end of its loop cancels it."""
    try:
        return Outcome(await work())
    except asyncio.CancelledError:
        return Outcome(error=HomeClosed("its event loop ended, and cut it off", begun=True))
    except Exception as error:
        return Outcome(error=error)


def _outcome_of(work: Callable[[], Any]) -> Outcome:
    try:
        return Outcome(work())
    except Exception as error:
        return Outcome(error=error)


def _not_begun(why: str) -> Future[Outcome]:
    ended: Future[Outcome] = Future()
    ended.set_result(Outcome(error=HomeClosed(why)))
    return ended


async def _join(future: Future[Outcome], deadline_s: float) -> Outcome | None:
    end = time.monotonic() + deadline_s
    cancelled: asyncio.CancelledError | None = None
    while not future.done() and time.monotonic() < end:
        try:
            await _wait(future, end - time.monotonic())
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return future.result() if future.done() else None


async def _wait(future: Future[Outcome], timeout_s: float) -> None:
    """Returns when the future is done or the time is up. The future is never cancelled."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def wake(_: Future[Outcome]) -> None:
        try:
            loop.call_soon_threadsafe(done.set)
        except RuntimeError:
            return  # the loop has been closed, so no caller waits

    future.add_done_callback(wake)
    try:
        async with asyncio.timeout(timeout_s):
            await done.wait()
    except TimeoutError:
        return


# one call at a time

#: Seconds after which a call in a thread is given up: none is, as long as a program runs.
NEVER_S = 1e9


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a call: it `returned`, `raised`, `runs` still, or `waited` behind another and never began.

    `cancelled`: somebody else than its caller cancelled it, so that it may have been carried out.
    """

    what: Literal["returned", "raised", "cancelled", "runs", "waited"]
    value: Any = None
    error: Exception | None = None


class HomeInTurn:
    """Makes one call at a time: nothing is begun until the one before has ended, whoever still waits for that.

    A sync actor runs one call at a time, and what comes behind a call that hangs would run long after its own deadline.
    A function runs in a thread, a coroutine function on the loop of its caller.
    """

    def __init__(self) -> None:
        self._last: asyncio.Future[Any] | None = None
        #: The name of the call that was begun last.
        self.last_name = ""

    @property
    def busy(self) -> bool:
        """Whether a call runs."""
        return self._last is not None and not self._last.done()

    async def run(self, name: str, call: Callable[[], Any], deadline_s: float) -> Ended:
        """What became of this call by the deadline."""
        clock = Deadline(deadline_s)
        while self.busy:
            if not await self.all_ended(clock.left_s):
                return Ended("waited")
        made = self._last = asyncio.ensure_future(_made(call))
        made.add_done_callback(_seen)
        self.last_name = name
        await asyncio.wait({made}, timeout=clock.left_s)
        if not made.done():
            return Ended("runs")
        if made.cancelled():
            return Ended("cancelled", error=RuntimeError("it was cancelled, by others than its caller"))
        error = made.exception()
        if error is None:
            return Ended("returned", made.result())
        if not isinstance(error, Exception):
            raise error
        return Ended("raised", error=error)

    async def all_ended(self, deadline_s: float) -> bool:
        """Whether every call that was begun before has ended by the deadline. Others may have begun since."""
        last = self._last
        if last is not None and not last.done():
            await asyncio.wait({last}, timeout=deadline_s)
        return last is None or last.done()


async def _made(call: Callable[[], Any]) -> Any:
    """What the call returned; where that can be awaited, alone or as a list of it, what came of that."""
    plain = not inspect.iscoroutinefunction(call)
    value = await in_thread(partial(_called, call), deadline_s=NEVER_S) if plain else call()
    if inspect.isawaitable(value):
        return await value
    if isinstance(value, list | tuple) and value and all(inspect.isawaitable(each) for each in value):
        return list(await asyncio.gather(*value, return_exceptions=True))
    return value


def _called(call: Callable[[], Any]) -> Any:
    """What the call returned. What ends a program or an iteration ends neither here: it is an error like any other."""
    try:
        return call()
    except (SystemExit, StopIteration) as error:
        raise RuntimeError(f"it raised {type(error).__name__}: {error}") from error


def _seen(ended: asyncio.Future[Any]) -> None:
    """What it raised is no surprise, where nobody waits for it any more."""
    if not ended.cancelled():
        ended.exception()
