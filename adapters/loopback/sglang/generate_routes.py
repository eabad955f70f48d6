"""The generate endpoint: one reply, a list of replies, or a stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from .. import tokenizer
from ..model import Choice
from ..request_states import Disconnected
from ..sequence import GenerateRequest, Output
from .bodies import BadPrompt, generate_requests, is_batch, read_body
from .engine import SGLangEngine

#: Seconds for which a stream counts as an active call after its end, which only the metrics show.
#: Source: sglang 0.5.23, managers/tokenizer_manager.py create_abort_task, measured.
STREAM_LAG_S = 2.0


async def generate(engine: SGLangEngine, request: Request) -> Response:
    """Continues the prompts. The headers of a stream are sent before its request is admitted."""
    body = await read_body(request)
    try:
        wanted = generate_requests(body, engine.options.context_length)
    except BadPrompt as error:
        return _error(str(error))
    if wanted[0].stream:
        after = BackgroundTask(asyncio.sleep, STREAM_LAG_S) if engine.options.enable_metrics else None
        return StreamingResponse(_events(engine, wanted), media_type="text/event-stream", background=after)
    try:
        replies = await asyncio.gather(*(_last(engine, each, request.is_disconnected) for each in wanted))
    except (ValueError, ConnectionError) as error:
        return _error(str(error))
    return JSONResponse(list(replies) if is_batch(body) else replies[0])


async def models(engine: SGLangEngine, request: Request) -> Response:
    """Lists the one model that is served."""
    entry: dict[str, Any] = {"id": engine.model_path, "object": "model", "created": int(engine.started_at)}
    entry |= {"owned_by": "loopback", "root": engine.model_path, "parent": None}
    entry |= {"max_model_len": engine.options.context_length}
    return JSONResponse({"object": "list", "data": [entry]})


async def _last(engine: SGLangEngine, request: GenerateRequest, gone: Disconnected) -> dict[str, Any]:
    began = time.monotonic()
    async with aclosing(engine.gate.generate(request, gone)) as outputs:  # type: ignore[type-var]
        async for output in outputs:
            last = output
    return _reply(engine, last, began)


async def _events(engine: SGLangEngine, wanted: list[GenerateRequest]) -> AsyncIterator[str]:
    began = time.monotonic()
    try:
        for index, request in enumerate(wanted):
            first = True
            async with aclosing(engine.gate.generate(request)) as outputs:  # type: ignore[type-var]
                async for output in outputs:
                    reply = _reply(engine, output, began, stamped=first)
                    yield _event(reply if len(wanted) == 1 else reply | {"index": index})
                    first = False
    except ValueError as error:
        yield _event({"error": {"message": str(error)}})
    yield "data: [DONE]\n\n"


def _event(payload: dict[str, Any]) -> str:
    return f"data: {json.dumps(payload)}\n\n"


def _reply(engine: SGLangEngine, output: Output, began: float, *, stamped: bool = True) -> dict[str, Any]:
    """The reply so far. Of a stream, only the first event has the time at which it was sent."""
    version = output.versions[-1][0] if output.versions else engine.weight_version
    meta: dict[str, Any] = {"id": output.rid, "finish_reason": output.finish, "weight_version": version}
    if not _was_waiting(output):
        meta |= _progress(output)
    meta["completion_tokens"] = len(output.ids)
    if output.finish is not None:
        spans = [dict(zip(("version", "start", "end"), span, strict=True)) for span in output.versions]
        meta["weight_versions"] = spans
        meta["e2e_latency"] = time.monotonic() - began
    if output.choices is not None:
        meta |= _logprobs(output.choices)
    if stamped:
        meta["response_sent_to_client_ts"] = time.time()
    return {"text": tokenizer.decode(output.ids), "output_ids": list(output.ids), "meta_info": meta}


def _was_waiting(output: Output) -> bool:
    """Whether the request was aborted in the waiting queue. Its reply then has fewer fields.

    Source: sglang 0.5.23, tokenizer_manager._handle_abort_req.
    """
    return output.finish is not None and output.finish["type"] == "abort" and "status_code" not in output.finish


def _progress(output: Output) -> dict[str, Any]:
    cached = {"device": output.cached_tokens, "host": 0} if output.cached_tokens else None
    return {
        "prompt_tokens": output.prompt_tokens,
        "num_retractions": output.retractions,
        "reasoning_tokens": 0,
        "cached_tokens": output.cached_tokens,
        "cached_tokens_details": cached,
        "dp_rank": None,
    }


def _logprobs(choices: Sequence[Choice]) -> dict[str, Any]:
    """Log probabilities of the output tokens. The third of each is its text, which SGLang leaves out by default."""
    meta: dict[str, Any] = {
        "input_token_logprobs": [],
        "output_token_logprobs": [[each.logprob, each.token, None] for each in choices],
        "output_token_logprobs_length": len(choices),
    }
    if any(each.top for each in choices):
        meta["input_top_logprobs"] = []
        meta["output_top_logprobs"] = [[[logprob, token, None] for logprob, token in each.top] for each in choices]
    return meta


def _error(message: str) -> Response:
    # Source: sglang 0.5.23: /generate answers a ValueError in this shape, which is not that of a validation error.
    return JSONResponse({"error": {"message": message}}, status_code=400)
