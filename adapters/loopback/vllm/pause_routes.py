"""Pause, resume and abort. Source: vllm 0.32.0, entrypoints/rl/online/api_router.py; observed."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .core import EngineCore
from .engine import VllmEngine
from .errors import ApiError
from .parameters import PauseQuery, ResetQuery, json_object, query

_GRACE_S = 0.02  # so that the last chunks tend to come before the answer. Source: AsyncLLM.pause_generation


async def pause(engine: VllmEngine, request: Request) -> Response:
    """Pauses by the mode in the query. A wait is answered when the engine is next idle, resumed meanwhile or not."""
    wanted = query(request, PauseQuery)
    mode = "wait" if engine.traits.waits_by_flag and wanted.wait_for_inflight_requests else wanted.mode
    try:
        await engine.all_cores("pause_scheduler", lambda core: core.pause_generation(mode, wanted.clear_cache))
    except ApiError as error:
        return _failed("pause generation", error)
    await asyncio.sleep(_GRACE_S)
    return JSONResponse({"status": "paused"})


async def resume(engine: VllmEngine, request: Request) -> Response:
    """Resumes, also where it is not paused, and also where memory sleeps."""
    try:
        await engine.all_cores("resume_scheduler", EngineCore.resume)
    except ApiError as error:
        return _failed("resume generation", error)
    return JSONResponse({"status": "resumed"})


async def is_paused(engine: VllmEngine, request: Request) -> Response:
    """Whether the scheduler is paused, also while it drains."""
    try:
        return JSONResponse({"is_paused": await engine.consensus("is_scheduler_paused", EngineCore.is_paused)})
    except ApiError as error:
        return _failed("fetch pause status", error)


async def abort(engine: VllmEngine, request: Request) -> Response:
    """Aborts the requests with these ids, or all. Of ids it counts those that were asked for, found or not."""
    wanted = (await json_object(request)).get("request_ids")
    if wanted:
        engine.requests.abort(wanted)
    return JSONResponse({"status": "aborted", "aborted": len(wanted) if wanted else engine.requests.abort_all()})


async def reset_prefix_cache(engine: VllmEngine, request: Request) -> Response:
    """Empties the prefix cache. `success` is false, with 200, while a request holds pages."""
    running = query(request, ResetQuery).reset_running_requests
    reset = await engine.all_cores(
        "reset_prefix_cache", lambda core: core.reset_prefix_cache(reset_running_requests=running)
    )
    return JSONResponse({"success": reset[0]})


async def reset_nothing(engine: VllmEngine, request: Request) -> Response:
    """Empties a cache that this engine does not have: of the multi-modal inputs, or of the encoder."""
    return Response()


def _failed(what: str, error: ApiError) -> Response:
    return JSONResponse({"error": f"Failed to {what}: {error}"}, status_code=500)
