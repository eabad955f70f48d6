"""The generate endpoint, in the shape that RL trainers read. Source: runtime/entrypoints/control_server.py."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from .. import tokenizer
from ..sequence import GenerateRequest, Output
from ..sglang.bodies import BadBody, BadPrompt, generate_requests, is_batch, read_body
from .engine import TokenspeedEngine
from .front_end import EngineGone


async def generate(engine: TokenspeedEngine, request: Request) -> Response:
    """Continues the prompts. One that comes while the gate is closed is not answered before it is open."""
    try:
        body = await read_body(request)
        wanted = generate_requests(body, engine.options.context_length)
    except (BadPrompt, BadBody) as error:
        return JSONResponse({"error": {"message": str(error)}}, status_code=400)
    if wanted[0].stream:
        return StreamingResponse(_events(engine, wanted[0]), media_type="text/event-stream")
    try:
        replies = await asyncio.gather(*(_last(engine, each) for each in wanted))
    except EngineGone:
        return JSONResponse({"error": {"message": "no worker answers"}}, status_code=503)
    return JSONResponse(list(replies) if is_batch(body) else replies[0])


async def models(engine: TokenspeedEngine, request: Request) -> Response:
    """Lists the one model that is served."""
    entry = {"id": engine.model_path, "object": "model", "created": int(engine.started_at), "owned_by": "loopback"}
    return JSONResponse({"object": "list", "data": [entry]})


async def _last(engine: TokenspeedEngine, request: GenerateRequest) -> dict[str, Any]:
    began = time.monotonic()
    async with aclosing(engine.requests.generate(request)) as outputs:  # type: ignore[type-var]
        async for output in outputs:
            last = output
    return _reply(engine, last, began)


async def _events(engine: TokenspeedEngine, request: GenerateRequest) -> AsyncIterator[str]:
    began = time.monotonic()
    try:
        async with aclosing(engine.requests.generate(request)) as outputs:  # type: ignore[type-var]
            async for output in outputs:
                yield f"data: {json.dumps(_reply(engine, output, began))}\n\n"
    except EngineGone:
        yield f"data: {json.dumps({'error': {'message': 'no worker answers'}})}\n\n"
    yield "data: [DONE]\n\n"


def _reply(engine: TokenspeedEngine, output: Output, began: float) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "id": output.rid,
        "finish_reason": output.finish,
        "prompt_tokens": output.prompt_tokens,
        "completion_tokens": len(output.ids),
        "cached_tokens": output.cached_tokens,
        "weight_version": engine.weight_version,
        "e2e_latency": time.monotonic() - began,
    }
    return {"text": tokenizer.decode(output.ids), "output_ids": list(output.ids), "meta_info": meta}
