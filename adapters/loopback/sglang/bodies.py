"""Parses request bodies and queries; what is invalid is answered as SGLang answers it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .. import tokenizer
from ..sequence import GenerateRequest, Sampling
from ..shape import VOCABULARY

Body = Mapping[str, Any]

PAUSE_MODES = ("abort", "retract", "in_place")


class BadBody(Exception):
    """A body or query that fails validation. It is answered with 400, never with 422."""


class BadPrompt(ValueError):
    """A valid generate request that cannot be run."""


def bad_request(message: str) -> Response:
    """A response with status 400, in the shape that SGLang gives every validation error.

    Source: sglang 0.5.23, entrypoints/http_server.py.
    """
    error = {"object": "error", "message": message, "type": "Bad Request", "param": None, "code": 400}
    return JSONResponse(error, status_code=400)


async def read_body(request: Request, *, required: bool = True) -> Body:
    """The JSON object in the body; {} for an empty body, unless `required`. Raises BadBody where it is not one."""
    raw = await request.body()
    if not raw:
        if required:
            raise BadBody(_invalid("missing", ("body",), "Field required", None))
        return {}
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadBody(_invalid("json_invalid", ("body", 0), "JSON decode error", str(error))) from error
    if not isinstance(body, dict):
        raise BadBody(_invalid("model_attributes_type", ("body",), "Input should be a valid dictionary", body))
    return body


def pause_mode(body: Body) -> str:
    """The pause mode; abort where the body has none."""
    mode = body.get("mode", "abort")
    if mode not in PAUSE_MODES:
        message = "Input should be 'abort', 'retract' or 'in_place'"
        raise BadBody(_invalid("literal_error", ("body", "mode"), message, mode))
    return str(mode)


def tags(body: Body) -> list[str]:
    """The tags that the body names. An empty list means all tags."""
    value = body.get("tags") or []
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        raise BadBody(_invalid("list_type", ("body", "tags"), "Input should be a valid list of strings", value))
    return value


def text_field(body: Body, name: str, *, required: bool = False) -> str | None:
    """The field as text; None where it is missing and not `required`."""
    value = body.get(name)
    if value is None and required:
        raise BadBody(_invalid("missing", ("body", name), "Field required", dict(body)))
    if value is not None and not isinstance(value, str):
        raise BadBody(_invalid("string_type", ("body", name), "Input should be a valid string", value))
    return value


def flag(body: Body, name: str, default: bool) -> bool:
    """The field as a boolean; `default` where it is missing."""
    value = body.get(name)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise BadBody(_invalid("bool_type", ("body", name), "Input should be a valid boolean", value))
    return value


def flush_timeout_s(request: Request) -> float:
    """The timeout in seconds. It is a query parameter; the body is ignored."""
    raw = request.query_params.get("timeout", "0")
    try:
        timeout_s = float(raw)
    except ValueError:
        timeout_s = -1.0
    if not 0 <= timeout_s < float("inf"):
        message = "Input should be greater than or equal to 0"
        raise BadBody(_invalid("greater_than_equal", ("query", "timeout"), message, raw))
    return timeout_s


def dp_rank(request: Request) -> int | None:
    """The data-parallel rank in the query; None for all."""
    raw = request.query_params.get("dp_rank")
    if raw is None:
        return None
    if not raw.lstrip("-").isdecimal():
        raise BadBody(_invalid("int_parsing", ("query", "dp_rank"), "Input should be a valid integer", raw))
    return int(raw)


def generate_requests(body: Body, context_length: int) -> list[GenerateRequest]:
    """One request, or one for each prompt of a batch. Raises BadPrompt where one cannot be run."""
    prompts = _prompts(body)
    rids = _rids(body.get("rid"), len(prompts))
    stream = flag(body, "stream", False)
    sampling = replace(_sampling(body.get("sampling_params") or {}), top_logprobs=_top_logprobs(body))
    return [
        GenerateRequest(rid, prompt, _within_context(sampling, len(prompt), context_length), stream)
        for rid, prompt in zip(rids, prompts, strict=True)
    ]


def is_batch(body: Body) -> bool:
    """Whether the body has several prompts, so that the reply is a list."""
    text, ids = body.get("text"), body.get("input_ids")
    return isinstance(text, list) or bool(isinstance(ids, list) and ids and isinstance(ids[0], list))


def _prompts(body: Body) -> list[tuple[int, ...]]:
    text, ids = body.get("text"), body.get("input_ids")
    if (text is None) == (ids is None):
        raise BadPrompt("Either text, input_ids or input_embeds should be provided.")
    many = (text if text is not None else ids) if is_batch(body) else [text if text is not None else ids]
    if not many:
        raise BadPrompt("The batch is empty.")
    return [_prompt(each) for each in many or ()]


def _prompt(value: object) -> tuple[int, ...]:
    ids = tokenizer.encode(value) if isinstance(value, str) else value
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise BadBody(_invalid("union_error", ("body", "text"), "Input should be text or a list of token ids", value))
    if any(not 0 <= token < VOCABULARY for token in ids):
        raise BadPrompt(f"The input_ids contain values outside the vocabulary of {VOCABULARY}.")
    return tuple(ids) or (tokenizer.BOS,)


def _rids(value: object, count: int) -> list[str]:
    match value:
        case None:
            return [uuid.uuid4().hex for _ in range(count)]
        case str() if count == 1:
            return [value]
        case list() if len(value) == count and all(isinstance(rid, str) for rid in value):
            return value
    raise BadPrompt("The rid must be a string, or in a batch a list of one string for each prompt.")


def _sampling(value: object) -> Sampling:
    if not isinstance(value, dict):
        raise BadBody(_invalid("dict_type", ("body", "sampling_params"), "Input should be a valid dictionary", value))
    limit = value.get("max_new_tokens", 128)
    if type(limit) is not int or limit < 0:
        raise BadPrompt(f"max_new_tokens must be at least 0, got {limit}.")
    temperature = value.get("temperature", 1.0)
    if not isinstance(temperature, int | float) or not 0 <= temperature < float("inf"):
        raise BadPrompt(f"temperature must be a non-negative finite number, got {temperature}.")
    stop = value.get("stop") or ()
    stops = (stop,) if isinstance(stop, str) else tuple(map(str, stop))
    ids = frozenset(map(int, value.get("stop_token_ids") or ()))
    return Sampling(limit, bool(value.get("ignore_eos", False)), stops, ids)


def _within_context(sampling: Sampling, prompt_tokens: int, context_length: int) -> Sampling:
    left = context_length - prompt_tokens
    if left < 1:
        raise BadPrompt(
            f"The input ({prompt_tokens} tokens) is longer than the model's context length ({context_length} tokens)."
        )
    return replace(sampling, max_new_tokens=min(sampling.max_new_tokens, left))


def _top_logprobs(body: Body) -> int | None:
    """How many of the likeliest tokens are wanted with each; None where no log probabilities are.

    There are none of the prompt, and none of tokens that the body names: a body that wants them is refused.
    """
    if not flag(body, "return_logprob", False):
        return None
    top, start = body.get("top_logprobs_num") or 0, body.get("logprob_start_len", -1)
    if type(top) is not int or top < 0:
        raise BadPrompt(f"top_logprobs_num must be a number of at least 0 for all prompts, got {top!r}.")
    if start not in (None, -1) or body.get("token_ids_logprob"):
        raise BadPrompt("Only the output's log probabilities are computed here; leave out logprob_start_len and ids.")
    return top


def _invalid(kind: str, where: tuple[str | int, ...], message: str, value: object) -> str:
    entry = {"type": kind, "loc": where, "msg": message, "input": value}
    return f"1 validation error:\n  {entry!r}"
