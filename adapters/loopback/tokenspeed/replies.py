"""How control calls are answered, and their bodies read. Source: runtime/entrypoints/sglang_compat_http.py."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from .front_end import EngineGone

Body = Mapping[str, Any]


async def guarded(build: Callable[[], Awaitable[dict[str, Any]]]) -> Response:
    """The payload, with 400 where it says that nothing was done. A wrong body is 400 too, any other failure 500."""
    try:
        payload = await build()
    except (KeyError, TypeError, ValueError) as error:
        return JSONResponse({"success": False, "message": f"Invalid request: {error}"}, status_code=400)
    except EngineGone:
        return PlainTextResponse("Internal Server Error", status_code=500)  # the control server's, whose app is gone
    except RuntimeError as error:
        return JSONResponse({"success": False, "message": str(error)}, status_code=500)
    return JSONResponse(payload, status_code=200 if payload.get("success", True) else 400)


def said(refused: str) -> dict[str, Any]:
    """The payload of a call that the scheduler answered."""
    return {"success": not refused, "message": refused}


async def json_body(request: Request, *, required: bool = True) -> Body:
    """The JSON object in the body; {} for an empty one, unless `required`. Raises ValueError where it is none."""
    raw = await request.body()
    if not raw:
        if required:
            raise ValueError("request body must be a JSON object")
        return {}
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise ValueError(f"request body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("request body is not valid JSON: it nests too deep") from error
    if not isinstance(body, dict):
        raise ValueError("request body must be a JSON object")
    return body
