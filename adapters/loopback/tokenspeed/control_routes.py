"""Pause, continue, abort, flush, and the memory of tags. Source: runtime/entrypoints/sglang_compat_http.py."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from .engine import TokenspeedEngine
from .replies import guarded, json_body, said

_MODES = ("abort", "keep", "wait")


async def pause(engine: TokenspeedEngine, request: Request) -> Response:
    """Closes the gate, then pauses the scheduler. Where that fails the gate is open again, whoever closed it."""

    async def act() -> dict[str, Any]:
        mode = str((await json_body(request, required=False)).get("mode", "wait"))
        if mode not in _MODES:
            raise ValueError(f"invalid pause mode: {mode!r} (expected one of {list(_MODES)})")
        await _paused(engine, mode, "Failed to pause generation.")
        return {"success": True, "message": "Paused generation.", "mode": mode}

    return await guarded(act)


async def unpause(engine: TokenspeedEngine, request: Request) -> Response:
    """Resumes the scheduler, and opens the gate. While memory is released it is refused."""

    async def act() -> dict[str, Any]:
        await _resumed(engine, "Failed to continue generation.")
        return {"success": True, "message": "Continued generation."}

    return await guarded(act)


async def abort(engine: TokenspeedEngine, request: Request) -> Response:
    """Aborts one request, or all. All ends with a resume: an engine that was paused before is open afterwards."""

    async def act() -> dict[str, Any]:
        body = await json_body(request)
        if body.get("abort_all"):
            await _paused(engine, "abort", "Failed to abort all requests.")
            await _resumed(engine, "Failed to resume after aborting requests.")
        elif body.get("rid"):
            engine.requests.drop(str(body["rid"]))
        return {"success": True}

    return await guarded(act)


async def flush(engine: TokenspeedEngine, request: Request) -> Response:
    """Empties the prefix cache, if it can be: the answer does not tell."""

    async def act() -> dict[str, Any]:
        await engine.requests.call("flush", engine.scheduler.flush)
        return {"success": True, "message": "Cache flushed."}

    return await guarded(act)


async def release(engine: TokenspeedEngine, request: Request) -> Response:
    """Releases the tags of the body, or all, once no request is left."""

    async def act() -> dict[str, Any]:
        tags = (await json_body(request, required=False)).get("tags")
        return said(await engine.requests.call("release", lambda: engine.scheduler.release(tags)))

    return await guarded(act)


async def restore(engine: TokenspeedEngine, request: Request) -> Response:
    """Maps the tags of the body, or all that are released."""

    async def act() -> dict[str, Any]:
        tags = (await json_body(request, required=False)).get("tags")
        return said(await engine.requests.call("restore", lambda: engine.scheduler.restore(tags)))

    return await guarded(act)


async def _paused(engine: TokenspeedEngine, mode: str, otherwise: str) -> None:
    engine.requests.block()
    try:
        if await engine.requests.call("pause", lambda: engine.scheduler.pause(mode)):
            raise RuntimeError(otherwise)
    except BaseException:
        engine.requests.allow()
        raise


async def _resumed(engine: TokenspeedEngine, otherwise: str) -> None:
    if await engine.requests.call("resume", engine.scheduler.resume):
        raise RuntimeError(otherwise)
    engine.requests.allow()
