"""Which engine answers at an address, where it is none of the kind that the URL names: the scheme to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .http import Answer, HttpClient, together

#: Seconds for these reads, which all answer at once where they are there.
READ_S = 2.0


@dataclass(frozen=True, slots=True)
class _Mark:
    """What only this kind of engine answers to a read that needs none of its options."""

    scheme: str
    engine: str
    path: str
    name: str  # of a field in the answer


#: `/load` is there without vLLM's development mode too. Source: vllm 0.32.0 and sglang 0.5.23, measured; tokenspeed
#: 0.1.1, read.
_MARKS = (
    _Mark("sglang", "SGLang", "/server_info", "internal_states"),
    _Mark("vllm", "vLLM", "/load", "server_load"),
    _Mark("tokenspeed", "tokenspeed", "/get_server_info", "tokenspeed_version"),
)


async def other_kind(
    own: str, http: HttpClient, known: Mapping[str, Answer], key: str | None, deadline_s: float
) -> str:
    """What the URL should begin with, in words that continue a sentence; empty where no other kind is recognised.

    `own` is the scheme that was refused, `known` the answers that were read before, by path. Every read is a GET.
    """
    if not any(answer.status is not None for answer in known.values()):
        return ""
    marks = [mark for mark in _MARKS if mark.scheme != own]
    asked = [mark.path for mark in marks if mark.path not in known]
    reads = [http.request("GET", path, deadline_s=min(deadline_s, READ_S), key=key) for path in asked]
    answers = {**known, **dict(zip(asked, await together(*reads), strict=True))}
    for mark in marks:
        answer = answers[mark.path]
        body = answer.json() if answer.ok else None
        if isinstance(body, dict) and mark.name in body:
            return f"; it answers as {mark.engine} does: write {mark.scheme}://{http.base_url.removeprefix('http://')}"
    return ""
