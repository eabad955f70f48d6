"""Completions and chat completions: one JSON answer, or a stream of server-sent events.

Source: vllm 0.32.0, entrypoints/openai/{completion,chat_completion}/{protocol,serving}.py; observed.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from .. import tokenizer
from ..sequence import GenerateRequest, Output
from . import replies
from .engine import VllmEngine
from .errors import ApiError
from .parameters import ChatBody, CompletionBody, body, json_only
from .prompts import chat_request, completion_requests

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP call: its id, its requests, and whether it is a chat."""

    engine: VllmEngine
    rid: str
    wanted: list[GenerateRequest]
    usage: bool
    chat: bool
    ids: bool = False

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """A chunk of the stream."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        model = {"model": self.engine.model_path, "choices": choices}
        return {"id": self.rid, "object": kind, "created": int(time.time()), **model, **more}


async def completions(engine: VllmEngine, request: Request) -> Response:
    """Continues the prompts. The headers of a stream are sent at once, also while the engine is paused."""
    json_only(request)
    wanted = await body(request, CompletionBody)
    rid = f"cmpl-{_base_id(request)}"
    requests = completion_requests(wanted, rid, engine.model_path, engine.options.context_length)
    return await _answer(
        Call(engine, rid, requests, _usage(wanted.stream_options), False, bool(wanted.return_token_ids)),
        bool(wanted.stream),
        request,
    )


async def chat(engine: VllmEngine, request: Request) -> Response:
    """Answers the messages."""
    json_only(request)
    wanted = await body(request, ChatBody)
    rid = f"chatcmpl-{_base_id(request)}"
    requests = [chat_request(wanted, rid, engine.model_path, engine.options.context_length)]
    call = Call(engine, rid, requests, _usage(wanted.stream_options), chat=True)
    return await _answer(call, bool(wanted.stream), request)


def _base_id(request: Request) -> str:
    return request.headers.get("x-request-id") or uuid.uuid4().hex


def _usage(options: dict[str, Any] | None) -> bool:
    return bool(options and options.get("include_usage"))


async def _answer(call: Call, stream: bool, request: Request) -> Response:
    call.engine.requests.check_admission(len(call.wanted))
    if stream:
        return _Counted(call.engine, _events(call), media_type="text/event-stream")
    call.engine.requests.load += 1
    try:
        return await _unless_gone(request, _whole(call))
    finally:
        call.engine.requests.load -= 1


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The response, or an empty one that nobody gets: where the client leaves, its requests are aborted at once."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([task, leaving], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return Response(status_code=499)
    finally:
        for each in (task, leaving):
            each.cancel()
        await asyncio.wait([task, leaving])


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _whole(call: Call) -> Response:
    outputs = await asyncio.gather(*(_last(call, each) for each in call.wanted))
    parts = (call.rid, call.engine.model_path, call.engine.traits.release, outputs)
    return JSONResponse(replies.chat(*parts) if call.chat else replies.completion(*parts, ids=call.ids))


async def _last(call: Call, request: GenerateRequest) -> Output:
    async with aclosing(call.engine.requests.generate(request)) as outputs:  # type: ignore[type-var]
        async for output in outputs:
            last = output
    return last


class _Counted(StreamingResponse):
    """A stream that is counted as load until it has ended."""

    def __init__(self, engine: VllmEngine, events: AsyncIterator[str], media_type: str) -> None:
        super().__init__(events, media_type=media_type)
        self._front_end = engine.requests
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._front_end.load += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._front_end.load -= 1
            await self._events.aclose()  # type: ignore[attr-defined]


async def _events(call: Call) -> AsyncIterator[str]:
    try:
        counts: list[Output] = []
        for index, request in enumerate(call.wanted):
            async with aclosing(_chunks(call, index, request)) as chunks:  # type: ignore[type-var]
                first = True
                async for chunk, output in chunks:
                    if first and call.chat:
                        yield _event(call.chunk([replies.role_choice()], prompt_token_ids=None, prompt_text=None))
                    first, last = False, output
                    if chunk is not None:
                        yield _event(chunk)
            counts.append(last)
        if call.usage:
            fingerprint = replies.fingerprint(call.engine.traits.release)
            yield _event(call.chunk([], usage=replies.usage(counts), system_fingerprint=fingerprint))
    except ApiError as error:
        yield _event(error.body())
    yield "data: [DONE]\n\n"


async def _chunks(
    call: Call, index: int, request: GenerateRequest
) -> AsyncIterator[tuple[dict[str, Any] | None, Output]]:
    """A chunk for each output. One that ends a request without any token has none: its client is told nothing."""
    sent = 0
    async with aclosing(call.engine.requests.generate(request)) as outputs:  # type: ignore[type-var]
        async for output in outputs:
            if not output.ids:
                yield None, output
                continue
            new, sent = output.ids[sent:], len(output.ids)
            text = tokenizer.decode(new)
            make: Callable[..., dict[str, Any]] = replies.chat_delta if call.chat else replies.text_delta
            more = {"system_fingerprint": replies.fingerprint(call.engine.traits.release)}
            final = output.finish is not None and not call.usage
            choice = make(index, text, output.finish)
            if call.ids:  # Source: vllm 0.32.0, entrypoints/openai/completion/serving.py
                choice["token_ids"] = list(new)
            yield call.chunk([choice], **(more if final else {})), output


def _event(payload: dict[str, Any]) -> str:
    return f"data: {json.dumps(payload)}\n\n"
