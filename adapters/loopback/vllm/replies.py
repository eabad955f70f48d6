"""The JSON of completions and chat completions, with every field that vLLM 0.32.0 has in it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from .. import tokenizer
from ..sequence import FinishReason, Output


def completion(rid: str, model: str, release: str, outputs: Sequence[Output], *, ids: bool = False) -> dict[str, Any]:
    """The answer of /v1/completions: a choice for each prompt, with its token `ids` where they are asked for."""
    unused = dict.fromkeys(("prompt_logprobs", "token_ids", "prompt_token_ids", "routed_experts"))
    choices = [_finished(index, output) | unused | {"text": _text(output)} for index, output in enumerate(outputs)]
    for choice, output in zip(choices, outputs, strict=True):
        choice["token_ids"] = list(output.ids) if ids else None
    return _answer(rid, "text_completion", model, release, choices, outputs)


def chat(rid: str, model: str, release: str, outputs: Sequence[Output]) -> dict[str, Any]:
    """The answer of /v1/chat/completions: one choice."""
    [output] = outputs
    unused = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
    message = {"role": "assistant", "content": _text(output), **unused}
    choice = _finished(0, output) | {"message": message, "token_ids": None, "routed_experts": None}
    more = dict.fromkeys(("prompt_logprobs", "prompt_token_ids", "prompt_text"))
    return _answer(rid, "chat.completion", model, release, [choice], outputs) | more


def role_choice() -> dict[str, Any]:
    """The choice of the first chunk of a chat's stream."""
    return {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}


def text_delta(index: int, text: str, finish: FinishReason | None) -> dict[str, Any]:
    """The choice of a chunk of a completion's stream."""
    unused = {"prompt_token_ids": None, "token_ids": None}
    return {"index": index, "text": text, "logprobs": None, **_reasons(finish), **unused}


def chat_delta(index: int, text: str, finish: FinishReason | None) -> dict[str, Any]:
    """The choice of a chunk of a chat's stream."""
    reasons = _reasons(finish) if finish else {"finish_reason": None}
    return {"index": index, "delta": {"content": text}, "logprobs": None, **reasons, "token_ids": None}


def usage(outputs: Sequence[Output]) -> dict[str, Any]:
    """The tokens of prompts and outputs."""
    prompt, generated = sum(each.prompt_tokens for each in outputs), sum(len(each.ids) for each in outputs)
    return {"prompt_tokens": prompt, "total_tokens": prompt + generated, "completion_tokens": generated}


def fingerprint(release: str) -> str:
    """What says which build answered."""
    return f"vllm-{release}-loopback"


def permission(created: int) -> dict[str, Any]:
    """What may be done with the model, in the list of models. Source: vllm 0.32.0, serve/engine/protocol.py."""
    denied = dict.fromkeys(("allow_create_engine", "allow_search_indices", "allow_fine_tuning", "is_blocking"), False)
    allowed = dict.fromkeys(("allow_sampling", "allow_logprobs", "allow_view"), True)
    head = {"id": f"modelperm-{uuid.uuid4().hex[:16]}", "object": "model_permission", "created": created}
    return {**head, **denied, **allowed, "organization": "*", "group": None}


def _text(output: Output) -> str:
    return tokenizer.decode(output.ids)


def _finished(index: int, output: Output) -> dict[str, Any]:
    return {"index": index, "logprobs": None, **_reasons(output.finish)}


def _reasons(finish: FinishReason | None) -> dict[str, Any]:
    finish = finish or {}
    return {"finish_reason": finish.get("type"), "stop_reason": finish.get("matched")}


def _answer(
    rid: str, kind: str, model: str, release: str, choices: list[dict[str, Any]], outputs: Sequence[Output]
) -> dict[str, Any]:
    details = {"prompt_tokens_details": None, "completion_tokens_details": None}
    head = {"id": rid, "object": kind, "created": int(time.time()), "model": model, "choices": choices}
    tail = dict.fromkeys(("service_tier", "kv_transfer_params", "ec_transfer_params", "metrics"))
    return {**head, **tail, "system_fingerprint": fingerprint(release), "usage": usage(outputs) | details}
