"""Sleep, wake and the release of the KV cache.

Source: vllm 0.32.0, entrypoints/serve/dev/sleep/api_router.py; observed.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .core import EngineCore
from .engine import VllmEngine
from .errors import ApiError
from .parameters import SleepQuery, query


async def sleep(engine: VllmEngine, request: Request) -> Response:
    """Puts the engine to sleep, and answers 200 also where that frees nothing. The body is ignored."""
    level, mode = _level_and_mode(engine, request)
    await engine.all_cores("sleep", lambda core: core.sleep(level, mode))
    engine.sleep_state = (1, level)
    return _answer(engine, {"status": "sleeping", "level": level})


async def wake_up(engine: VllmEngine, request: Request) -> Response:
    """Wakes the tags in the query, or all. A tag that is wrong is no error: the answer says that it still sleeps."""
    tags = request.query_params.getlist("tags") or None
    awake = all(await engine.all_cores("wake_up", lambda core: core.wake_up(tags)))
    if awake or not engine.traits.gauge_needs_full_wake:
        engine.sleep_state = (0, 0)
    return _answer(engine, {"status": "awake" if awake else "sleeping", "tags": tags})


async def release_kv_cache_memory(engine: VllmEngine, request: Request) -> Response:
    """Frees the KV cache alone, of a paused engine of which nothing sleeps."""
    await engine.all_cores("release_kv_cache_memory", EngineCore.release_kv_cache_memory)
    engine.sleep_state = (1, 0)
    return JSONResponse({"status": "kv_cache_released"})


async def is_sleeping(engine: VllmEngine, request: Request) -> Response:
    """Whether a tag sleeps or the scheduler is paused: true after a mere pause."""
    return JSONResponse({"is_sleeping": await engine.consensus("is_sleeping", EngineCore.is_sleeping)})


def _level_and_mode(engine: VllmEngine, request: Request) -> tuple[int, str]:
    if engine.traits.checks_sleep:
        wanted = query(request, SleepQuery)
        return wanted.level, wanted.mode
    # Source: vllm 0.24.0 to 0.30.0, serve/dev/sleep/api_router.py: any number, any mode.
    level = request.query_params.get("level", "1")
    try:
        return int(level), request.query_params.get("mode", "abort")
    except ValueError as error:
        raise ApiError(str(error), 400, "BadRequestError") from error


def _answer(engine: VllmEngine, body: dict[str, object]) -> Response:
    return JSONResponse(body) if engine.traits.says_what_sleeps else Response()
