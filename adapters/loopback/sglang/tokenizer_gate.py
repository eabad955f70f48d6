"""The front end of the scheduler: it admits requests, and delivers outputs to them. Used on the event loop only.

Source: sglang 0.5.23, managers/tokenizer_manager.py. Its locks are taken in the same order as there, since that order
is why an abort pause of a server that is paused in_place never returns.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

from ..request_states import Disconnected, RequestState, RequestStates
from ..sequence import GenerateRequest, Output
from .prompt_counts import PromptCounts
from .scheduler import Scheduler

Result = TypeVar("Result")


class ModelUpdateLock:
    """A readers-writer lock: requests hold it together, an update alone. New requests wait behind a waiting update."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._readers = 0
        self._writers_waiting = 0
        self._writing = False

    @property
    def locked(self) -> bool:
        return self._writing or self._readers > 0

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._writing and not self._writers_waiting)
            self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            await asyncio.shield(self._wake())

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        async with self._changed:
            self._writers_waiting += 1
            try:
                await self._changed.wait_for(lambda: not self.locked)
                self._writing = True
            finally:
                self._writers_waiting -= 1
        try:
            yield
        finally:
            self._writing = False
            await asyncio.shield(self._wake())

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class TokenizerGate(RequestStates):
    """Admits requests unless paused. A request that waits here is unknown to the scheduler: no count includes it."""

    def __init__(self, scheduler: Scheduler, *, abort_poll_s: float) -> None:
        super().__init__()
        self.counts = PromptCounts()
        self.is_pause = False
        self._scheduler = scheduler
        self._abort_poll_s = abort_poll_s
        self._is_pause_cond = asyncio.Condition()
        self._model_update_lock = ModelUpdateLock()
        self._turns: dict[str, asyncio.Lock] = {}

    def deliver(self, outputs: Sequence[Output]) -> None:
        """Delivers outputs to the requests that wait for them, and counts them."""
        self.counts.delivered(outputs)
        super().deliver(outputs)

    async def generate(self, request: GenerateRequest, gone: Disconnected | None = None) -> AsyncIterator[Output]:
        """Yields the newest output after each step, the finished one last. Raises ValueError for an id in use."""
        if request.rid in self.rid_to_state:
            raise ValueError(f"Duplicate request ID detected: {request.rid}")
        state = self.rid_to_state[request.rid] = RequestState()
        self.counts.begins(request.rid, stream=request.stream)
        try:
            async with self._is_pause_cond:
                await self._is_pause_cond.wait_for(lambda: not self.is_pause)
            async with self._model_update_lock.reading():
                self._scheduler.submit(request)
                async for output in self.outputs(request.rid, state, gone):
                    yield output
        finally:
            self._forget(request.rid, state)

    def _forget(self, rid: str, state: RequestState) -> None:
        self.rid_to_state.pop(rid, None)
        if state.latest is None or state.latest.finish is None:
            self._abort(rid)

    async def pause(self, mode: str) -> None:
        """Stops admission. An abort returns once no request is in flight; the other modes also pause the scheduler.

        An abort of a batch that is frozen in place never returns, and holds the lock that every later pause and
        continue needs. Source: sglang 0.5.23, measured.
        """
        async with self._is_pause_cond:
            self.is_pause = True
            if mode != "abort":
                self._scheduler.pause(mode)
                return
            while True:
                self._abort("", everything=True)
                if not self._model_update_lock.locked:
                    return
                await asyncio.sleep(self._abort_poll_s)

    async def close(self) -> None:
        """Stops admission; admitted requests run on."""
        async with self._is_pause_cond:
            self.is_pause = True

    async def unpause(self) -> None:
        """Resumes the scheduler and admits requests again."""
        async with self._is_pause_cond:
            self.is_pause = False
            self._scheduler.unpause()
            self._is_pause_cond.notify_all()

    def abort(self, rid: str, *, everything: bool) -> None:
        """Has the scheduler abort the requests whose id starts with `rid`, if a request has that very id."""
        if everything or (rid and rid in self.rid_to_state):
            self._abort(rid, everything=everything)

    def _abort(self, rid: str, *, everything: bool = False) -> None:
        self.counts.abort_commands += 1
        self._scheduler.abort(rid, everything=everything)

    @contextlib.asynccontextmanager
    async def updating(self) -> AsyncIterator[None]:
        """A context in which weights may be replaced: while paused, at once; else once no request is in flight."""
        async with self._is_pause_cond:
            paused = self.is_pause
        async with contextlib.nullcontext() if paused else self._model_update_lock.writing():
            yield

    async def in_turn(self, call: str, act: Callable[[], Awaitable[Result]]) -> Result:
        """Runs `act` and returns its result. Calls of the same name run one at a time."""
        async with self._turns.setdefault(call, asyncio.Lock()):
            return await act()
