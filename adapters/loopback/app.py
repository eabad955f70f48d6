"""The HTTP API: routes, keys, validation errors, and the faults that are injected into calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from . import control_routes, generate_routes, status_routes, weight_routes
from .bodies import BadBody, bad_request, read_body
from .connection import Dropped
from .engine import Engine
from .faults import Fault

Handler = Callable[[Engine, Request], Awaitable[Response]]

_GET, _POST, _BOTH = ("GET",), ("POST",), ("GET", "POST")
_POLL_S = 0.02
_OPEN = ("/health", "/ready", "/metrics")  # by prefix. Source: sglang 0.5.23, utils/auth.py


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path and its handler. `call` names it in faults; `admin` endpoints take the admin key."""

    path: str
    methods: tuple[str, ...]
    handler: Handler
    call: str = ""
    admin: bool = False


ENDPOINTS = (
    Endpoint("/generate", ("POST", "PUT"), generate_routes.generate, "generate"),
    Endpoint("/", _GET, status_routes.root),
    Endpoint("/v1/models", _GET, generate_routes.models),
    Endpoint("/pause_generation", _POST, control_routes.pause, "pause", admin=True),
    Endpoint("/continue_generation", _POST, control_routes.unpause, "continue", admin=True),
    Endpoint("/flush_cache", _BOTH, control_routes.flush, "flush", admin=True),
    Endpoint("/release_memory_occupation", _BOTH, control_routes.release, "release", admin=True),
    Endpoint("/resume_memory_occupation", _BOTH, control_routes.resume, "resume", admin=True),
    Endpoint("/abort_request", _POST, control_routes.abort, "abort", admin=True),
    Endpoint("/update_weights_from_disk", _POST, weight_routes.from_disk, "update", admin=True),
    Endpoint("/update_weights_from_tensor", _POST, weight_routes.from_tensor, "update", admin=True),
    Endpoint("/begin_weight_update", _POST, weight_routes.begin, "begin", admin=True),
    Endpoint("/end_weight_update", _POST, weight_routes.end, "end", admin=True),
    Endpoint("/update_weight_version", _POST, weight_routes.version, admin=True),
    Endpoint("/weights_checker", _BOTH, weight_routes.check, "weights_checker", admin=True),
    Endpoint("/ready", _GET, status_routes.ready, "ready"),
    Endpoint("/health", _GET, status_routes.health, "health"),
    Endpoint("/health_generate", _GET, status_routes.health, "health"),
    Endpoint("/ping", _GET, status_routes.ping),
    Endpoint("/server_info", _GET, status_routes.server_info, "server_info"),
    Endpoint("/get_server_info", _GET, status_routes.server_info, "server_info"),
    Endpoint("/model_info", _GET, status_routes.model_info, "model_info"),
    Endpoint("/get_model_info", _GET, status_routes.model_info, "model_info"),
    Endpoint("/v1/loads", _GET, status_routes.loads, "loads"),
)


def build_app(engine: Engine) -> ASGIApp:
    """The ASGI application of one engine."""
    endpoints = ENDPOINTS + tuple(_optional(engine))
    app = Starlette(
        routes=[_route(engine, each) for each in endpoints],
        exception_handlers={HTTPException: _http_error, BadBody: _bad_body},
    )
    control = frozenset((each.path, method) for each in endpoints if each.admin for method in each.methods)
    return Counted(engine, Keys(engine, app, control))


def _optional(engine: Engine) -> list[Endpoint]:
    metrics = [Endpoint("/metrics", _GET, status_routes.metrics)] if engine.options.enable_metrics else []
    faults = [Endpoint("/_fault", _POST, _set_faults)] if engine.options.allow_faults else []
    return metrics + faults


def _route(engine: Engine, endpoint: Endpoint) -> Route:
    async def handle(request: Request) -> Response:
        return await _with_fault(engine, endpoint, request)

    return Route(endpoint.path, handle, methods=list(endpoint.methods))


async def _with_fault(engine: Engine, endpoint: Endpoint, request: Request) -> Response:
    """The handler's response, or what an injected fault makes of the call."""
    fault = engine.faults.of(endpoint.call) or Fault("")
    replaced = await _fault_instead(engine, endpoint, fault)
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


async def _fault_instead(engine: Engine, endpoint: Endpoint, fault: Fault) -> Response | None:
    """The response of a fault under which the call has no effect; None for other faults."""
    match fault.kind:
        case "hang":
            await asyncio.Event().wait()
        case "die":
            engine.death.schedule(f"fault: {endpoint.call}=die")
            await asyncio.Event().wait()
        case "error":
            return _failure(fault)
        case "binary":
            return Response(bytes(range(256)) * 4, 500, media_type="application/octet-stream")
        case "huge":
            return StreamingResponse(_zeros(int(fault.amount or 1)), 500)
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
        engine.faults.set(dict(await read_body(request)))
    except ValueError as error:
        raise BadBody(str(error)) from error
    return JSONResponse({"status": "ok"})


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, status_code=error.status_code, headers=error.headers)


async def _bad_body(request: Request, error: Exception) -> Response:
    return bad_request(str(error))


class Keys:
    """Passes a request on if it has the key that its endpoint takes, else answers 401.

    Source: sglang 0.5.23, utils/auth.py, measured: with both keys set, control endpoints take only the admin key, and
    the others only the API key. A control path with a method that it does not have is not a control endpoint.
    """

    def __init__(self, engine: Engine, app: ASGIApp, control: frozenset[tuple[str, str]]) -> None:
        self._api, self._admin = engine.options.api_key, engine.options.admin_api_key
        self._app = app
        self._control = control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._allowed(scope):
            return await self._app(scope, receive, send)
        return await JSONResponse({"error": "Unauthorized"}, status_code=401)(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        path = str(scope["path"])
        is_control = (path, str(scope["method"])) in self._control
        wanted = (self._admin or self._api) if is_control else self._api
        if not wanted or path.startswith(_OPEN):
            return True
        given: bytes = dict(scope["headers"]).get(b"authorization", b"")
        return given == f"Bearer {wanted}".encode()


class Counted:
    """Counts the HTTP requests in progress, by path and method."""

    def __init__(self, engine: Engine, app: ASGIApp) -> None:
        self._active = engine.http_requests_active
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        key = (str(scope["path"]), str(scope["method"]))
        self._active[key] = self._active.get(key, 0) + 1
        try:
            return await self._app(scope, receive, send)
        finally:
            self._active[key] -= 1
