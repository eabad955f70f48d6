"""Lets a handler drop its connection without an answer, for which ASGI has no message."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

_TRANSPORTS: dict[Any, asyncio.Transport] = {}


class DroppableProtocol(H11Protocol):
    """uvicorn's protocol; it records each transport by the client's address."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _TRANSPORTS[transport.get_extra_info("peername")[:2]] = transport

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        _TRANSPORTS.pop(self.transport.get_extra_info("peername")[:2], None)


class Dropped(Response):
    """A response that closes the connection without sending anything."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = _TRANSPORTS.get(tuple(scope["client"]))
        if transport is not None:
            transport.abort()
        while (await receive())["type"] != "http.disconnect":
            pass
