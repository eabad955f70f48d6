"""vLLM's HTTP API: which endpoints there are, who needs a key, and how errors are answered."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..app import BOTH, GET, POST, Counted, Endpoint, routes
from . import completion_routes, pause_routes, sleep_routes, status_routes, weight_routes
from .engine import VllmEngine
from .errors import ApiError

#: Paths that begin so take the API key. Source: vllm 0.32.0, serve/middleware/authenticate.py.
_GUARDED = ("/v1", "/v2", "/inference", "/cohere")

ALWAYS: tuple[Endpoint[VllmEngine], ...] = (
    Endpoint("/health", GET, status_routes.health, "health"),
    Endpoint("/ping", BOTH, status_routes.health, "health"),
    Endpoint("/version", GET, status_routes.version),
    Endpoint("/load", GET, status_routes.load, "loads"),
    Endpoint("/metrics", GET, status_routes.metrics),
    Endpoint("/v1/models", GET, status_routes.models),
    Endpoint("/v1/completions", POST, completion_routes.completions, "generate"),
    Endpoint("/v1/chat/completions", POST, completion_routes.chat, "generate"),
)
#: Served in development mode alone. The calls are named as SGLang's are, so that both take the same faults.
DEVELOPMENT: tuple[Endpoint[VllmEngine], ...] = (
    Endpoint("/pause", POST, pause_routes.pause, "pause"),
    Endpoint("/resume", POST, pause_routes.resume, "continue"),
    Endpoint("/is_paused", GET, pause_routes.is_paused, "ready"),
    Endpoint("/abort_requests", POST, pause_routes.abort, "abort"),
    Endpoint("/reset_prefix_cache", POST, pause_routes.reset_prefix_cache, "flush"),
    Endpoint("/reset_mm_cache", POST, pause_routes.reset_nothing),
    Endpoint("/reset_encoder_cache", POST, pause_routes.reset_nothing),
    Endpoint("/sleep", POST, sleep_routes.sleep, "release"),
    Endpoint("/wake_up", POST, sleep_routes.wake_up, "resume"),
    Endpoint("/release_kv_cache_memory", POST, sleep_routes.release_kv_cache_memory, "release"),
    Endpoint("/is_sleeping", GET, sleep_routes.is_sleeping),
    Endpoint("/collective_rpc", POST, weight_routes.collective_rpc, "update"),
    Endpoint("/init_weight_transfer_engine", POST, weight_routes.init_transfer),
    Endpoint("/shutdown_weight_transfer_engine", POST, weight_routes.shut_transfer_down),
    Endpoint("/start_weight_update", POST, weight_routes.start_update, "begin"),
    Endpoint("/start_draft_weight_update", POST, weight_routes.start_draft_update, "begin"),
    Endpoint("/update_weights", POST, weight_routes.update, "update"),
    Endpoint("/finish_weight_update", POST, weight_routes.finish_update, "end"),
    Endpoint("/update_weight_version", POST, weight_routes.label),
    Endpoint("/weight_info", GET, weight_routes.info, "model_info"),
    Endpoint("/weight_checker", POST, weight_routes.check, "weights_checker"),
    Endpoint("/server_info", GET, status_routes.server_info, "server_info"),
    Endpoint("/get_world_size", GET, status_routes.world_size),
)
FAULT_TOLERANCE: Endpoint[VllmEngine] = Endpoint("/fault_tolerance/status", GET, status_routes.fault_tolerance)


def build_app(engine: VllmEngine) -> ASGIApp:
    """The ASGI application of one engine. A path that is not there is 404 `{"detail": "Not Found"}`."""
    chosen = [*ALWAYS, *(DEVELOPMENT if engine.options.dev_mode else ())]
    chosen += [FAULT_TOLERANCE] if engine.options.fault_tolerance else []
    there = [each for each in chosen if each.path not in engine.traits.absent]
    app = Starlette(
        routes=[*routes(engine, there)], exception_handlers={HTTPException: _http_error, ApiError: _api_error}
    )
    return Counted(engine, Key(engine, app))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, status_code=error.status_code, headers=error.headers)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


class Key:
    """Passes a request on if its path needs no key, or if it has the key. No lifecycle endpoint needs one."""

    def __init__(self, engine: VllmEngine, app: ASGIApp) -> None:
        self._key = engine.options.api_key
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._key or self._allowed(scope):
            return await self._app(scope, receive, send)
        return await JSONResponse({"error": "Unauthorized"}, status_code=401)(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        given: bytes = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.decode(errors="replace").partition(" ")
        return not str(scope["path"]).startswith(_GUARDED) or (scheme.lower() == "bearer" and key == self._key)
