"""The front end: requests wait at its gate while it is closed, and one control call of a kind is with the scheduler.

Source: tokenspeed 0.1.1, runtime/engine/async_llm.py, scheduler_control_client.py, scheduler_communicator.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from ..request_states import RequestState, RequestStates
from ..sequence import GenerateRequest, Output
from ..sglang.tokenizer_gate import ModelUpdateLock
from .scheduler import Answered, Scheduler


class EngineGone(Exception):
    """The scheduler has ended; no call reaches it."""


class FrontEnd(RequestStates):
    """Used on the event loop only. A request that waits at the gate is known to nobody: no count includes it."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self.scheduler = scheduler
        self.dead = asyncio.Event()
        self._admits = asyncio.Event()
        self._admits.set()
        self._update_lock = ModelUpdateLock()
        self._turns: dict[str, asyncio.Lock] = {}

    def block(self) -> None:
        """Requests that come from here on wait."""
        self._admits.clear()

    def allow(self) -> None:
        """Requests are admitted, those that wait first."""
        self._admits.set()

    def updating(self) -> AbstractAsyncContextManager[None]:
        """A context in which weights may be replaced, once no request is past the gate."""
        return self._update_lock.writing()

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Output]:
        """Yields the newest output after each step, the finished one last."""
        await self._admits.wait()
        async with self._update_lock.reading():
            if self.dead.is_set():
                raise EngineGone
            state = self.rid_to_state[request.rid] = RequestState()
            try:
                self.scheduler.submit(request)
                async for output in self.outputs(request.rid, state):
                    yield output
            finally:
                self._forget(request.rid, state)

    def _forget(self, rid: str, state: RequestState) -> None:
        self.rid_to_state.pop(rid, None)
        if state.latest is None or state.latest.finish is None:
            self.scheduler.abort(rid)

    def drop(self, rid: str) -> None:
        """The scheduler aborts this request, if there is one; its client is told nothing."""
        if rid in self.rid_to_state:
            self.scheduler.abort(rid)

    async def call(self, kind: str, act: Callable[[], Answered]) -> str:
        """What the scheduler answers: empty where it did, else why not. Calls of one kind are sent one after another.

        A caller that leaves changes nothing: its call is sent, and what comes behind it waits for its answer.
        """
        return await asyncio.shield(asyncio.ensure_future(self._in_turn(kind, act)))

    async def _in_turn(self, kind: str, act: Callable[[], Answered]) -> str:
        async with self._turns.setdefault(kind, asyncio.Lock()):
            if self.dead.is_set():
                raise EngineGone
            answered: asyncio.Future[str] = asyncio.wrap_future(act())
            return await self._unless_dead(answered)

    async def _unless_dead(self, answered: Awaitable[str]) -> str:
        waiting = asyncio.ensure_future(answered)
        died = asyncio.ensure_future(self.dead.wait())
        try:
            await asyncio.wait({waiting, died}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise EngineGone
            return waiting.result()
        finally:
            died.cancel()
