"""Turns the bodies of completions and chat completions into requests, or refuses them as vLLM does."""

from __future__ import annotations

from .. import tokenizer
from ..sequence import GenerateRequest, Sampling
from ..shape import VOCABULARY
from .errors import ApiError
from .parameters import ChatBody, CompletionBody


def completion_requests(body: CompletionBody, rid: str, model: str, context: int) -> list[GenerateRequest]:
    """A request for each prompt. Their ids are the call's with an index. Raises ApiError."""
    prompts = _prompts(body.prompt)
    return [_request(body, prompt, f"{rid}-{i}", model, context, body.max_tokens) for i, prompt in enumerate(prompts)]


def chat_request(body: ChatBody, rid: str, model: str, context: int) -> GenerateRequest:
    """The one request of a chat; it has the call's id. Raises ApiError."""
    lines = [f"{each.get('role')}: {each.get('content')}\n" for each in body.messages]
    prompt = tokenizer.encode("".join(lines) + "assistant: ")
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return _request(body, prompt, rid, model, context, limit)


def _prompts(prompt: list[int] | list[list[int]] | str | list[str]) -> list[list[int]]:
    if isinstance(prompt, str):
        return [tokenizer.encode(prompt)]
    if not prompt:
        raise _refused("Either prompt or prompt_embeds must be provided and non-empty.")
    if isinstance(prompt[0], int):
        return [_tokens(prompt)]
    return [tokenizer.encode(each) if isinstance(each, str) else _tokens(each) for each in prompt]


def _tokens(prompt: object) -> list[int]:
    if not isinstance(prompt, list) or not all(type(token) is int and 0 <= token < VOCABULARY for token in prompt):
        raise _refused(f"A token of the prompt is out of the vocabulary of {VOCABULARY}.")
    return list(prompt)


def _request(
    body: CompletionBody | ChatBody, prompt: list[int], rid: str, model: str, context: int, limit: int | None
) -> GenerateRequest:
    if body.model not in (None, model):
        raise ApiError(f"The model `{body.model}` does not exist.", 404, "NotFoundError", "model")
    if (body.temperature or 0.0) < 0:
        raise _refused(f"temperature must be non-negative, got {body.temperature}.", "temperature")
    left = context - len(prompt)
    limit = left if limit is None else limit
    if limit < 1:
        raise _refused(f"max_tokens must be at least 1, got {limit}.", "max_tokens")
    if limit > left:
        message = f"This model's maximum context length is {context} tokens. However, you requested {limit} output "
        raise _refused(f"{message}tokens and your prompt contains {len(prompt)} input tokens.", "input_tokens")
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    sampling = Sampling(limit, body.ignore_eos, stops, frozenset(body.stop_token_ids or ()))
    return GenerateRequest(rid, tuple(prompt) or (tokenizer.BOS,), sampling, bool(body.stream))


def _refused(message: str, param: str | None = None) -> ApiError:
    return ApiError(message, 400, "BadRequestError", param)
