"""What every dialect's HTTP API is made of: endpoints, the faults injected into calls, and a count of requests."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .connection import Dropped
from .engine import Engine
from .faults import Fault

EngineT = TypeVar("EngineT", bound=Engine)

GET, POST, BOTH = ("GET",), ("POST",), ("GET", "POST")
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[EngineT]):
    """A path and its handler. `call` names it in faults; `admin` endpoints take SGLang's admin key."""

    path: str
    methods: tuple[str, ...]
    handler: Callable[[EngineT, Request], Awaitable[Response]]
    call: str = ""
    admin: bool = False


def routes(engine: EngineT, endpoints: Sequence[Endpoint[EngineT]]) -> list[Route]:
    """A route for each endpoint, and the one that sets faults where the engine allows that."""
    faults: list[Endpoint[EngineT]] = [Endpoint("/_fault", POST, _set_faults)] if engine.options.allow_faults else []
    return [_route(engine, each) for each in (*endpoints, *faults)]


def _route(engine: EngineT, endpoint: Endpoint[EngineT]) -> Route:
    async def handle(request: Request) -> Response:
        return await _with_fault(engine, endpoint, request)

    return Route(endpoint.path, handle, methods=list(endpoint.methods))


async def _with_fault(engine: EngineT, endpoint: Endpoint[EngineT], request: Request) -> Response:
    """The handler's response, or what an injected fault makes of the call."""
    fault = engine.faults.of(endpoint.call) or Fault("")
    replaced = await _fault_instead(engine, endpoint.call, fault)
    if replaced is not None:
        return replaced
    response = await endpoint.handler(engine, request)
    match fault.kind:
        case "slow":
            await _held_back(engine, endpoint.call, fault)
        case "die_after":
            engine.death.schedule(f"fault: {endpoint.call}=die_after")
        case "lost":
            return Dropped()
        case "error_after":
            return _failure(fault)
    return response


async def _held_back(engine: Engine, call: str, fault: Fault) -> None:
    """Returns after the seconds of the fault, or once it is no longer in force."""
    end = time.monotonic() + (fault.amount or 0.0)
    while engine.faults.of(call) is fault and time.monotonic() < end:  # noqa: ASYNC110 - other threads replace it
        await asyncio.sleep(min(_POLL_S, end - time.monotonic()))


async def _fault_instead(engine: Engine, call: str, fault: Fault) -> Response | None:
    """The response of a fault under which the call has no effect; None for other faults."""
    match fault.kind:
        case "hang":
            await asyncio.Event().wait()
        case "die":
            engine.death.schedule(f"fault: {call}=die")
            await asyncio.Event().wait()
        case "error":
            return _failure(fault)
        case "binary":
            return Response(bytes(range(256)) * 4, 500, media_type="application/octet-stream")
        case "huge":
            return StreamingResponse(_zeros(int(fault.amount or 1)), 500)
        case "end_rank":
            engine.end_rank(int(fault.amount or 0))
        case "redirect":
            return Response(status_code=307, headers={"Location": "http://127.0.0.1:9/elsewhere"})
    return None


async def _zeros(mib: int) -> AsyncIterator[bytes]:
    for _ in range(mib * 16):
        yield bytes(1 << 16)


def _failure(fault: Fault) -> Response:
    return JSONResponse({"error": {"message": "fault"}}, status_code=int(fault.amount or 500))


async def _set_faults(engine: Engine, request: Request) -> Response:
    """Sets the faults of the named calls; null removes one."""
    try:
        engine.faults.set(dict(json.loads(await request.body())))
    except (TypeError, ValueError, RecursionError) as error:
        return JSONResponse({"object": "error", "message": str(error), "code": 400}, status_code=400)
    return JSONResponse({"status": "ok"})


class Counted:
    """Counts the HTTP requests, by path and method, and the answers by their status once they have ended."""

    def __init__(self, engine: Engine, app: ASGIApp) -> None:
        self._counts = engine.http
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        key, status = (str(scope["path"]), str(scope["method"])), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        self._counts.begun[key] += 1
        self._counts.active[key] += 1
        try:
            await self._app(scope, receive, noted)
            self._counts.answers[(*key, status)] += 1
        finally:
            self._counts.active[key] -= 1
