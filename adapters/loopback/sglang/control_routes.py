"""The control endpoints: pause, continue, flush, release, resume, abort."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .bodies import flag, flush_timeout_s, pause_mode, read_body, tags, text_field
from .engine import SGLangEngine

_FLUSHED = (
    "Cache flushed.\nPlease check backend logs for more details. "
    "(When there are running or waiting requests, the operation will not be performed.)\n"
)


async def pause(engine: SGLangEngine, request: Request) -> Response:
    """Pauses by the mode in the body."""
    mode = pause_mode(await read_body(request))
    await (engine.gate.close() if engine.faults.has("pause", "mode") else engine.gate.pause(mode))
    return JSONResponse({"message": "Generation paused successfully.", "status": "ok"})


async def unpause(engine: SGLangEngine, request: Request) -> Response:
    """Resumes the scheduler and admits requests again."""
    flag(await read_body(request), "torch_empty_cache", True)
    await engine.gate.unpause()
    return JSONResponse({"message": "Generation continued successfully.", "status": "ok"})


async def flush(engine: SGLangEngine, request: Request) -> Response:
    """Empties the prefix cache of an idle scheduler, else answers 400."""
    timeout_s = flush_timeout_s(request)
    refused = await engine.gate.in_turn("flush", lambda: asyncio.wrap_future(engine.scheduler.flush(timeout_s)))
    return Response(refused, 400) if refused else Response(_FLUSHED)  # without a content type, as SGLang


async def release(engine: SGLangEngine, request: Request) -> Response:
    """Releases the tags' memory. Where that ends the engine, there is no answer."""
    wanted = tags(await read_body(request))
    await engine.gate.in_turn("release", lambda: asyncio.wrap_future(engine.scheduler.release(wanted)))
    return JSONResponse(None)


async def resume(engine: SGLangEngine, request: Request) -> Response:
    """Makes the tags' memory resident. Where that ends the engine, there is no answer."""
    wanted = tags(await read_body(request))
    await engine.gate.in_turn("resume", lambda: asyncio.wrap_future(engine.scheduler.resume(wanted)))
    return JSONResponse(None)


async def abort(engine: SGLangEngine, request: Request) -> Response:
    """Passes an abort on. The answer does not say whether a request was aborted."""
    body = await read_body(request)
    engine.gate.abort(text_field(body, "rid") or "", everything=flag(body, "abort_all", False))
    return Response()
