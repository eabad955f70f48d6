"""The status endpoints. None reports a pause or what is released, and one says "ok" whatever is so."""

from __future__ import annotations

import asyncio
import time

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ..sequence import HEALTH_PREFIX, GenerateRequest, Sampling
from .engine import TokenspeedEngine

_PROBE_POLL_S = 0.05


async def server_info(engine: TokenspeedEngine, request: Request) -> Response:
    """The arguments, when it started, and how many requests the front end has. `is_paused` is never there."""
    return _gone() if engine.requests.dead.is_set() else JSONResponse(engine.server_info())


async def model(engine: TokenspeedEngine, request: Request) -> Response:
    """The model by name. Its label is always empty here, and what is empty is left out."""
    if engine.requests.dead.is_set():
        return _gone()
    length = engine.options.context_length
    report = {"model_path": engine.model_path, "served_model_name": engine.model_path, "max_context_length": length}
    return JSONResponse({**report, "vocab_size": 256, "model_type": "loopback"})


async def health(engine: TokenspeedEngine, request: Request) -> Response:
    """Whether the gateway has a worker."""
    return PlainTextResponse("OK") if not engine.requests.dead.is_set() else Response(status_code=503)


async def health_generate(engine: TokenspeedEngine, request: Request) -> Response:
    """Says "ok", paused, released or dead."""
    return JSONResponse({"status": "ok"})


async def health_check(engine: TokenspeedEngine, request: Request) -> Response:
    """Whether anything came from the scheduler in time, while a token was asked for: also of another's request.

    Source: tokenspeed-smg-grpc-servicer 0.9.1, tokenspeed/servicer.py, `HealthCheck`.
    """
    if engine.requests.dead.is_set():
        return _gone()
    began = time.monotonic()
    probe = asyncio.create_task(_one_token(engine, f"{HEALTH_PREFIX}_{time.time()}"))
    try:
        while time.monotonic() < began + engine.options.health_timeout_s:
            await asyncio.sleep(_PROBE_POLL_S)
            if engine.requests.last_receive > began or probe.done():
                return JSONResponse({"healthy": True, "message": "Health check passed"})
    finally:
        probe.cancel()
    return JSONResponse({"message": f"Health check timeout after {engine.options.health_timeout_s:.0f}s"})


async def loads(engine: TokenspeedEngine, request: Request) -> Response:
    """What the scheduler published last; requests that it keeps back while paused count."""
    report = engine.scheduler.loads
    frozen = engine.faults.has("loads", "frozen") is not None
    row = {"dp_rank": 0, "num_reqs": 0 if frozen else report.running + report.waiting}
    return JSONResponse({"loads": [{**row, "num_waiting_reqs": report.waiting, "num_pages": report.pages}]})


async def _one_token(engine: TokenspeedEngine, rid: str) -> None:
    async for _ in engine.requests.generate(GenerateRequest(rid, (0,), Sampling(max_new_tokens=1))):
        pass


def _gone() -> Response:
    """What the control server says of an engine that it does not reach."""
    return JSONResponse({"error": "engine unavailable", "detail": "failed to connect"}, status_code=503)
