"""The control server's HTTP API: which endpoints there are, and which take which key.

Source: runtime/entrypoints/control_server.py, sglang_compat_http.py, rl_control.py.
"""

from __future__ import annotations

import hmac

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..app import BOTH, GET, POST, Counted, Endpoint, routes
from . import control_routes, generate_routes, status_routes, weight_routes
from .engine import TokenspeedEngine

#: Passed on to the RL control app, which takes a key of its own.
CONTROL: tuple[Endpoint[TokenspeedEngine], ...] = (
    Endpoint("/pause_generation", POST, control_routes.pause, "pause"),
    Endpoint("/continue_generation", POST, control_routes.unpause, "continue"),
    Endpoint("/abort_request", POST, control_routes.abort, "abort"),
    Endpoint("/flush_cache", BOTH, control_routes.flush, "flush"),
    Endpoint("/release_memory_occupation", POST, control_routes.release, "release"),
    Endpoint("/resume_memory_occupation", POST, control_routes.restore, "resume"),
    Endpoint("/update_weights_from_mooncake", POST, weight_routes.from_mooncake, "update"),
    Endpoint("/update_weights_from_distributed", POST, weight_routes.from_distributed, "update"),
    Endpoint("/update_weights_from_disk", POST, weight_routes.from_disk),
    Endpoint("/update_weights_from_tensor", POST, weight_routes.from_tensor),
    Endpoint("/init_weights_update_group", POST, weight_routes.init_group),
    Endpoint("/destroy_weights_update_group", POST, weight_routes.destroy_group),
    Endpoint("/rebalance_experts", POST, weight_routes.rebalance),
    Endpoint("/get_weight_version", GET, weight_routes.version),
    Endpoint("/update_weight_version", POST, weight_routes.set_version),
    Endpoint("/model_info", GET, weight_routes.model_info, "model_info"),
    Endpoint("/health_generate", GET, status_routes.health_generate, "health"),
    Endpoint("/v1/loads", GET, status_routes.loads, "loads"),
)
#: Passed on to the gateway, or asked of the engine by gRPC.
OTHERS: tuple[Endpoint[TokenspeedEngine], ...] = (
    Endpoint("/generate", POST, generate_routes.generate, "generate"),
    Endpoint("/v1/models", GET, generate_routes.models),
    Endpoint("/health", GET, status_routes.health, "health"),
    Endpoint("/health_check", GET, status_routes.health_check, "health"),
    Endpoint("/get_server_info", GET, status_routes.server_info, "server_info"),
    Endpoint("/get_model_info", GET, status_routes.model),
)
#: What the gateway asks its key for.
_GATEWAY = frozenset({"/generate"})
_CONTROL = frozenset(each.path for each in CONTROL)


def build_app(engine: TokenspeedEngine) -> ASGIApp:
    """The ASGI application of one engine."""
    app = Starlette(routes=[*routes(engine, (*CONTROL, *OTHERS))], exception_handlers={HTTPException: _http_error})
    return Counted(engine, Keys(engine, app))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, status_code=error.status_code, headers=error.headers)


class Keys:
    """Passes a request on if it has the key of the app behind it, else answers 401 as that does."""

    def __init__(self, engine: TokenspeedEngine, app: ASGIApp) -> None:
        self._key, self._control_key = engine.options.api_key, engine.options.admin_api_key
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope.get("path"))
        wanted = self._control_key if path in _CONTROL else self._key if path in _GATEWAY else None
        if scope["type"] != "http" or not wanted or self._has(scope, wanted):
            return await self._app(scope, receive, send)
        said = {"success": False, "message": "unauthorized"} if path in _CONTROL else {"error": "Unauthorized"}
        return await JSONResponse(said, status_code=401)(scope, receive, send)

    def _has(self, scope: Scope, wanted: str) -> bool:
        given: bytes = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, f"Bearer {wanted}".encode())
