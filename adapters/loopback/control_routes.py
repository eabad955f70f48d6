"""Pause, continue, flush, release, resume, abort."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .bodies import flag, flush_timeout_s, pause_mode, read_body, tags, text_field
from .engine import Engine

_FLUSHED = (
    "Cache flushed.\nPlease check backend logs for more details. "
    "(When there are running or waiting requests, the operation will not be performed.)\n"
)


async def pause(engine: Engine, request: Request) -> Response:
    """The gate is closed, by the mode of the body."""
    mode = pause_mode(await read_body(request))
    await (engine.gate.close() if engine.faults.has("pause", "mode") else engine.gate.pause(mode))
    return JSONResponse({"message": "Generation paused successfully.", "status": "ok"})


async def unpause(engine: Engine, request: Request) -> Response:
    """The gate is open."""
    flag(await read_body(request), "torch_empty_cache", True)
    await engine.gate.unpause()
    return JSONResponse({"message": "Generation continued successfully.", "status": "ok"})


async def flush(engine: Engine, request: Request) -> Response:
    """The prefix cache is empty and the scheduler was idle, or 400."""
    timeout_s = flush_timeout_s(request)
    refused = await engine.gate.in_turn("flush", lambda: asyncio.wrap_future(engine.scheduler.flush(timeout_s)))
    return Response(refused, 400) if refused else Response(_FLUSHED)  # without a content type, as SGLang


async def release(engine: Engine, request: Request) -> Response:
    """The tags' memory is given back; a scheduler that dies of it never answers."""
    wanted = tags(await read_body(request))
    await engine.gate.in_turn("release", lambda: asyncio.wrap_future(engine.scheduler.release(wanted)))
    return JSONResponse(None)


async def resume(engine: Engine, request: Request) -> Response:
    """The tags' memory is resident; a scheduler that dies of it never answers."""
    wanted = tags(await read_body(request))
    await engine.gate.in_turn("resume", lambda: asyncio.wrap_future(engine.scheduler.resume(wanted)))
    return JSONResponse(None)


async def abort(engine: Engine, request: Request) -> Response:
    """Sent; whether anything ended is not said."""
    body = await read_body(request)
    engine.gate.abort(text_field(body, "rid") or "", everything=flag(body, "abort_all", False))
    return Response()
