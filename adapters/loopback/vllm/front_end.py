"""The front end: admits requests to the engine cores, knows them by the clients' ids, and delivers outputs.

No request waits here: one that is accepted while the engine is paused waits in a core, and is counted.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import replace

from ..request_states import RequestState, RequestStates
from ..sequence import GenerateRequest, Output
from .core import EngineCore
from .errors import EngineDead, Paused, QueueOverflow, ShuttingDown


class FrontEnd(RequestStates):
    """Used on the event loop only. Source: vllm 0.32.0, v1/engine/async_llm.py and output_processor.py."""

    def __init__(self, cores: Sequence[EngineCore], limit: int | None) -> None:
        super().__init__()
        self.finished: Counter[str] = Counter()  # by finish reason
        self.rejections = 0
        self.load = 0  # open HTTP calls that generate
        self.exiting = False
        self.dead = False
        self._cores = cores
        self._limit = limit
        self._core_of: dict[str, int] = {}  # by internal id
        self._internal: dict[str, set[str]] = {}  # by the client's id

    def check_admission(self, count: int) -> None:
        """Raises ApiError where this many more requests are not taken."""
        if self.dead:
            raise EngineDead()
        if self.exiting:
            raise ShuttingDown()
        if self._limit is not None and len(self.rid_to_state) + count > self._limit:
            self.rejections += 1
            raise QueueOverflow()

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Output]:
        """Yields the newest output after each step, the finished one last. Raises ApiError.

        The id that a client chose may be in use: each request has an internal id beside it.
        """
        self.check_admission(1)
        rid = f"{request.rid}-{uuid.uuid4().hex[:8]}"
        state = self._register(request.rid, rid)
        try:
            self._cores[self._core_of[rid]].submit(replace(request, rid=rid))
            async for output in self.outputs(rid, state):
                if output.finish is not None and output.finish["type"] == "error":
                    raise Paused()
                yield output
        finally:
            self._forget(request.rid, rid, state)

    def _register(self, external: str, rid: str) -> RequestState:
        loads = Counter(self._core_of.values())
        self._core_of[rid] = min(range(len(self._cores)), key=lambda core: loads[core])
        self._internal.setdefault(external, set()).add(rid)
        state = self.rid_to_state[rid] = RequestState()
        return state

    def _forget(self, external: str, rid: str, state: RequestState) -> None:
        del self.rid_to_state[rid], self._core_of[rid]
        self._internal[external].discard(rid)
        if not self._internal[external]:
            del self._internal[external]
        if state.latest is not None and state.latest.finish is not None:
            self.finished[str(state.latest.finish["type"])] += 1
        else:
            self._finish([rid])

    def abort(self, external: Iterable[str]) -> None:
        """Aborts the requests with exactly these ids. Those that are unknown are passed over."""
        self._finish([rid for each in external for rid in self._internal.get(each, ())])

    def abort_all(self) -> int:
        """Aborts every request; returns how many there were."""
        rids = list(self.rid_to_state)
        self._finish(rids)
        return len(rids)

    def _finish(self, rids: Collection[str]) -> None:
        for core in self._cores:
            core.finish(rids)
