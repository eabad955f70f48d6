"""The port to a router: what stands in front of engines and can stop sending to one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Router(Protocol):
    """Requests reach engines through it. `close` and `open` return once the router has confirmed."""

    async def close(self, engines: Sequence[str]) -> None:
        """No new request is sent to these engines from here on; raises where that is not certain."""

    async def open(self, engines: Sequence[str]) -> None:
        """These engines may be sent requests again."""

    async def is_open(self, engine: str) -> bool | None:
        """Whether the router sends to this engine; None where it does not tell."""

    async def in_flight(self, engine: str) -> int | None:
        """Requests sent to this engine and not yet ended; None where the router does not count."""
