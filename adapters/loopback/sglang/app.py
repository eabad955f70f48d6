"""SGLang's HTTP API: its endpoints, its keys and its validation errors."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..app import BOTH, GET, POST, Counted, Endpoint, routes
from . import control_routes, generate_routes, status_routes, weight_routes
from .bodies import BadBody, bad_request
from .engine import SGLangEngine

_OPEN = ("/health", "/ready", "/metrics")  # by prefix. Source: sglang 0.5.23, utils/auth.py


ENDPOINTS = (
    Endpoint("/generate", ("POST", "PUT"), generate_routes.generate, "generate"),
    Endpoint("/", GET, status_routes.root),
    Endpoint("/v1/models", GET, generate_routes.models),
    Endpoint("/pause_generation", POST, control_routes.pause, "pause", admin=True),
    Endpoint("/continue_generation", POST, control_routes.unpause, "continue", admin=True),
    Endpoint("/flush_cache", BOTH, control_routes.flush, "flush", admin=True),
    Endpoint("/release_memory_occupation", BOTH, control_routes.release, "release", admin=True),
    Endpoint("/resume_memory_occupation", BOTH, control_routes.resume, "resume", admin=True),
    Endpoint("/abort_request", POST, control_routes.abort, "abort", admin=True),
    Endpoint("/update_weights_from_disk", POST, weight_routes.from_disk, "update", admin=True),
    Endpoint("/update_weights_from_tensor", POST, weight_routes.from_tensor, "update", admin=True),
    Endpoint("/begin_weight_update", POST, weight_routes.begin, "begin", admin=True),
    Endpoint("/end_weight_update", POST, weight_routes.end, "end", admin=True),
    Endpoint("/update_weight_version", POST, weight_routes.version, admin=True),
    Endpoint("/weights_checker", BOTH, weight_routes.check, "weights_checker", admin=True),
    Endpoint("/ready", GET, status_routes.ready, "ready"),
    Endpoint("/health", GET, status_routes.health, "health"),
    Endpoint("/health_generate", GET, status_routes.health, "health"),
    Endpoint("/ping", GET, status_routes.ping),
    Endpoint("/server_info", GET, status_routes.server_info, "server_info"),
    Endpoint("/get_server_info", GET, status_routes.server_info, "server_info"),
    Endpoint("/model_info", GET, status_routes.model_info, "model_info"),
    Endpoint("/get_model_info", GET, status_routes.model_info, "model_info"),
    Endpoint("/v1/loads", GET, status_routes.loads, "loads"),
)


def build_app(engine: SGLangEngine) -> ASGIApp:
    """The ASGI application of one engine."""
    metrics = [Endpoint("/metrics", GET, status_routes.metrics)] if engine.options.enable_metrics else []
    endpoints = (*ENDPOINTS, *metrics)
    there = [each for each in endpoints if each.path not in engine.traits.absent]
    app = Starlette(
        routes=[*routes(engine, there)],
        exception_handlers={HTTPException: _http_error, BadBody: _bad_body},
    )
    control = frozenset((each.path, method) for each in endpoints if each.admin for method in each.methods)
    return Counted(engine, Keys(engine, app, control))


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

    def __init__(self, engine: SGLangEngine, app: ASGIApp, control: frozenset[tuple[str, str]]) -> None:
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
