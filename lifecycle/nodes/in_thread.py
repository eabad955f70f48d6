"""Blocking calls, made in threads and given up at a deadline."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from ..core.verdicts import Unmeasurable

T = TypeVar("T")

#: Seconds that a call waits behind others of the pool before it gets a further thread.
PATIENCE_S = 0.02

#: Seconds that a thread which has nothing to run waits for more.
IDLE_S = 2.0


class Unavailable(Exception):
    """What was to be measured cannot be; the message says why and what would help."""


async def in_thread(call: Callable[[], T], *, deadline_s: float) -> T:
    """Returns or raises what `call` does; raises TimeoutError after `deadline_s` seconds.

    Each call has a daemon thread to itself. One that hangs in the driver therefore delays neither the shutdown of the
    loop's executor nor the exit of the program.
    """
    asked = _Asked(call)
    _start(asked.answer)
    async with asyncio.timeout(deadline_s):
        return await asked.result  # type: ignore[no-any-return]


async def in_pool(call: Callable[[], T], *, deadline_s: float, key: Hashable = None) -> T:
    """Returns or raises what `call` does, as `in_thread`, by threads that all calls of this kind share.

    One thread makes the calls that wait, one after the other. Where one has waited for PATIENCE_S, a further thread
    begins: many short calls take one thread, and one that blocks delays others by little more than that. Who asks with
    the `key` of a call that has not begun yet shares that call.
    """
    asked = _POOLS.setdefault(asyncio.get_running_loop(), _Pool()).asked(call, object() if key is None else key)
    try:
        async with asyncio.timeout(deadline_s):
            return await asyncio.shield(asked.result)
    finally:
        asked.waiting -= 1


async def measured(question: Awaitable[T], *, deadline_s: float, action: str) -> T | Unmeasurable:
    """Returns what the question returns, or Unmeasurable where it took over `deadline_s` or could not be measured.

    `action` says in the reason what was being done, as in "reading the hook mode".
    """
    try:
        async with asyncio.timeout(deadline_s):
            return await question
    except TimeoutError:
        return Unmeasurable(reason=f"{action} took more than {deadline_s:.1f} s")
    except Unavailable as error:
        return Unmeasurable(reason=str(error))


class _Asked:
    """A call, when and by which loop it was asked, and the result that is awaited. `waiting` is how many still do."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call, self.asked_at, self.waiting = call, time.monotonic(), 0
        self.loop = asyncio.get_running_loop()
        self.result: asyncio.Future[Any] = self.loop.create_future()

    def answer(self) -> None:
        """Makes the call, in a thread, and delivers what came of it."""
        try:
            value = self.call()
        except BaseException as error:
            self._deliver(self.result.set_exception, error)
        else:
            self._deliver(self.result.set_result, value)

    def _deliver(self, set_outcome: Callable[[Any], None], outcome: Any) -> None:
        def deliver() -> None:
            if not self.result.done():
                set_outcome(outcome)
                self.result.exception()  # seen, where all who waited have given up

        try:
            self.loop.call_soon_threadsafe(deliver)
        except RuntimeError:
            return  # the loop was closed meanwhile, so that nothing awaits the result


@dataclass(slots=True)
class _Pool:
    """The calls of one event loop that wait, by key, and the number of threads that make them."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    waiting: dict[Hashable, _Asked] = field(default_factory=dict)
    threads: int = 0
    #: Whether a timer is set that checks whether a call has waited too long.
    timed: bool = False

    def asked(self, call: Callable[[], Any], key: Hashable) -> _Asked:
        """The call that waits with this key, which is a new one unless there is one."""
        with self.lock:
            asked = self.waiting.get(key)
            if asked is None:
                asked = self.waiting[key] = _Asked(call)
            asked.waiting += 1
            idle = not self.threads
            self.threads += idle
        if idle:  # once all who were woken with this one have asked, so that they can share
            asked.loop.call_soon(self._start)
        if not self.timed:
            self.timed = True
            asked.loop.call_later(PATIENCE_S, self.check, asked.loop)
        return asked

    def check(self, loop: asyncio.AbstractEventLoop) -> None:
        """A further thread begins where a call has waited too long; checks again as long as any waits."""
        with self.lock:
            oldest = next(iter(self.waiting.values()), None)
            late = oldest is not None and time.monotonic() - oldest.asked_at >= PATIENCE_S / 2
            self.threads += late
        self.timed = oldest is not None
        if self.timed:
            loop.call_later(PATIENCE_S, self.check, loop)
        if late:
            self._start()

    def work(self) -> None:
        """Makes the calls that wait, until none does."""
        while True:
            with self.lock:
                if not self.waiting:
                    self.threads -= 1
                    return
                asked = self.waiting.pop(next(iter(self.waiting)))
            if asked.waiting:
                asked.answer()

    def _start(self) -> None:
        """A thread, which is counted already, begins."""
        try:
            _start(self.work)
        except RuntimeError:  # this process may have no more threads: it is tried again as long as a call waits
            with self.lock:
                self.threads -= 1


_POOLS: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool] = WeakKeyDictionary()


class _Threads:
    """Daemon threads. One that has nothing more to run is kept, for IDLE_S; others end at once.

    Who starts a thread waits, on the event loop, until that runs: the longer, the busier the host is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Where the thread that is kept waits for its next call.
        self._kept: SimpleQueue[Callable[[], None]] | None = None

    def run(self, call: Callable[[], None]) -> None:
        """A thread that does nothing else runs this. RuntimeError where one is needed that cannot be had."""
        with self._lock:
            inbox, self._kept = self._kept, None
        if inbox is not None:
            inbox.put(call)
            return
        inbox = SimpleQueue()
        inbox.put(call)  # and not given to the thread, which would hold it while it waits
        threading.Thread(target=self._serve, args=(inbox,), name="lifecycle-probe", daemon=True).start()

    def _serve(self, inbox: SimpleQueue[Callable[[], None]]) -> None:
        while True:
            try:
                inbox.get(timeout=IDLE_S)()
            except Empty:
                with self._lock:
                    if self._kept is inbox:
                        self._kept = None
                        return
                continue  # its next call is on the way
            with self._lock:
                if self._kept is not None:
                    return
                self._kept = inbox


_THREADS = _Threads()


def _start(run: Callable[[], None]) -> None:
    _THREADS.run(run)


def _none_in_child() -> None:
    """A child of a fork has none of the threads."""
    global _THREADS
    _THREADS = _Threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_none_in_child)
