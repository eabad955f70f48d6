"""The front end's requests: the newest output of each, and the outputs for whoever waits for one. Event loop only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from .sequence import Output

Disconnected = Callable[[], Awaitable[bool]]

#: Seconds without an output after which a request that is no stream checks whether its client has disconnected.
#: Source: sglang 0.5.23, managers/tokenizer_manager.py.
_DISCONNECT_POLL_S = 4.0


@dataclass(slots=True)
class RequestState:
    """The newest output of one request, and an event that is set when one arrives."""

    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    latest: Output | None = None
    failed: Exception | None = None  # raised for whoever waits for an output


class RequestStates:
    """Every request that the front end has, by its id."""

    def __init__(self) -> None:
        self.rid_to_state: dict[str, RequestState] = {}
        self.last_receive = 0.0

    def deliver(self, outputs: Sequence[Output]) -> None:
        """Delivers outputs to the requests that wait for them."""
        self.last_receive = time.monotonic()
        for output in outputs:
            state = self.rid_to_state.get(output.rid)
            if state is not None:
                state.latest = output
                state.arrived.set()

    def fail_all(self, error: Exception) -> None:
        """Raises the error for whoever waits for an output."""
        for state in self.rid_to_state.values():
            state.failed = error
            state.arrived.set()

    async def outputs(self, rid: str, state: RequestState, gone: Disconnected | None = None) -> AsyncIterator[Output]:
        """Every output that is the latest when it is asked for, the last one always."""
        seen: Output | None = None
        while seen is None or seen.finish is None:
            if state.latest is not None and state.latest is not seen:
                seen = state.latest
                yield seen
                continue
            if state.failed is not None:
                raise state.failed
            state.arrived.clear()
            try:
                await asyncio.wait_for(state.arrived.wait(), _DISCONNECT_POLL_S)
            except TimeoutError:
                if gone is not None and await gone():
                    raise ConnectionError(f"the client of {rid} is gone") from None
