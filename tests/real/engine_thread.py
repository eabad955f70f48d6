"""What the tests of engines in this process share: an engine on a loop of its own thread, and the requests it runs.

This runs inside an engine's own environment (`in_process.py`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from lifecycle import BaseObserver, State, Transition

PROMPTS = ("hello", "zebra", "once upon a time", "def main():")

#: What each prompt is answered with while nothing disturbs it.
Alone = dict[str, tuple[int, ...]]


@dataclass(slots=True)
class Request:
    """One request, read to its end: its tokens, and why it ended."""

    prompt: str
    wanted: int
    ids: tuple[int, ...] = ()
    reason: str | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def join(self) -> Request:
        """It has ended."""
        assert self.ended.wait(180), f"{self.prompt}: it has not ended, after {len(self.ids)} tokens"
        assert self.error is None, self.error
        return self


class EngineThread(ABC):
    """An engine whose event loop runs in a thread of its own. `tokens` is how many a request in flight asks for.

    The thread lives until `close`, also when its loop rests: the kernel kills SGLang's scheduler when the thread ends
    that started it (prctl PR_SET_PDEATHSIG).
    """

    tokens: int

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.engine: Any = self.on_loop(self.made(), 400)

    def _run(self) -> None:
        self.loop.run_forever()
        self._over.wait()

    @abstractmethod
    async def made(self) -> Any:
        """The engine, made on this loop."""

    @abstractmethod
    def chunks(self, prompt: str, tokens: int) -> AsyncIterator[tuple[tuple[int, ...], str | None]]:
        """All tokens of a greedy request so far, and why it ended, once for each of its chunks."""

    def on_loop(self, coroutine: Coroutine[Any, Any, Any], deadline_s: float = 60.0) -> Any:
        """What the coroutine returns, on the engine's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(deadline_s)

    def rest(self) -> None:
        """Nobody runs the loop."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        until(lambda: not self.loop.is_running())

    def close(self) -> None:
        """Its processes, its loop and its thread have ended."""
        self.engine.shutdown()
        self.rest()
        self._over.set()
        self._thread.join(10)

    def ask(self, prompt: str, tokens: int) -> Request:
        """A request that runs on the engine's loop."""
        request = Request(prompt, tokens)
        asyncio.run_coroutine_threadsafe(self._read(request), self.loop)
        return request

    async def _read(self, request: Request) -> None:
        try:
            async for ids, reason in self.chunks(request.prompt, request.wanted):
                request.ids, request.reason = ids, reason
        except Exception as error:
            request.error = error
        finally:
            request.ended.set()

    def alone(self, tokens: int) -> Alone:
        """What each prompt is answered with now."""
        asked = [self.ask(prompt, tokens) for prompt in PROMPTS]
        return {each.prompt: each.join().ids for each in asked}

    def in_flight(self, tokens: int | None = None) -> list[Request]:
        """Requests after all prompts, each of which has got a token."""
        asked = [self.ask(prompt, tokens or self.tokens) for prompt in PROMPTS]
        until(lambda: all(each.ids or each.error for each in asked))
        assert not any(each.error for each in asked), [each.error for each in asked]
        return asked


def fates(ended: Iterable[Request], alone: Alone) -> set[tuple[str | None, bool]]:
    """Why each ended, and whether it got all its tokens. Those that it got must be those that it gets when alone."""
    found = set()
    for each in ended:
        each.join()
        print(f"{each.prompt}: {len(each.ids)} of {each.wanted} tokens, {each.reason}")
        assert each.ids == alone[each.prompt][: len(each.ids)], f"{each.prompt}: not what it gets when alone"
        found.add((each.reason, len(each.ids) == each.wanted))
    return found


def until(condition: Callable[[], bool], deadline_s: float = 60.0) -> None:
    """The condition holds; AssertionError where it does not in time."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.005)


class StopsBeforeACall(BaseObserver):
    """Stops the process once a command has asked what it needs, before its first call, which lasts until `go_on`.

    The command is the one that passes through the state `before`.
    """

    def __init__(self, pid: int, before: State) -> None:
        self._pid, self._before = pid, before
        self.stopped = threading.Event()

    def transition(self, record: Transition) -> None:
        """The process takes no step where that command has begun."""
        if record.dest is self._before:
            os.kill(self._pid, signal.SIGSTOP)
            self.stopped.set()

    def go_on(self) -> None:
        """The process goes on."""
        os.kill(self._pid, signal.SIGCONT)
