"""A request as the scheduler holds it, and its outputs for the front end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from . import tokenizer
from .model import NGRAM_WINDOW, Choice, Chunk

FinishReason = dict[str, Any]
#: A version of the weights, and the first and the end of the output tokens that it generated.
Span = tuple[str, int, int]

HEALTH_PREFIX = "HEALTH_CHECK"
PREFILL_CHUNK = 32  # tokens of a row in one step, so that control messages do not wait for a long prompt
#: After so many tokens SGLang's front end is told of a request that is no stream.
#: Source: sglang 0.5.23, environ.py SGLANG_FORCE_STREAM_INTERVAL.
REPORTED_EVERY = 50


@dataclass(frozen=True, slots=True)
class Sampling:
    """When a request stops. Decoding is always greedy."""

    max_new_tokens: int = 128
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    top_logprobs: int | None = None  # as in Chunk


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A prompt to continue."""

    rid: str
    prompt: tuple[int, ...]
    sampling: Sampling
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """The state of a request after a step; `finish` is None while it goes on."""

    rid: str
    ids: tuple[int, ...]
    finish: FinishReason | None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    retractions: int = 0
    versions: tuple[Span, ...] = ()  # once it is finished
    choices: tuple[Choice, ...] | None = None  # where log probabilities are wanted


@dataclass(slots=True, eq=False)
class Sequence:
    """A request, its tokens so far, and its pages of the KV pool."""

    request: GenerateRequest
    tokens: list[int]
    pages: list[int] = field(default_factory=list)
    computed: int = 0  # tokens whose keys and values are in the pool
    cached: int = 0
    retractions: int = 0
    to_abort: bool = False
    finish: FinishReason | None = None
    choices: list[Choice] = field(default_factory=list)
    relabellings: list[tuple[str, int]] = field(default_factory=list)  # an old version, and the tokens until then
    arrived: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, request: GenerateRequest) -> Sequence:
        return cls(request, list(request.prompt))

    @property
    def rid(self) -> str:
        return self.request.rid

    @property
    def output(self) -> list[int]:
        return self.tokens[len(self.request.prompt) :]

    def chunk_end(self) -> int:
        """The position after the last token that the next step computes."""
        return min(len(self.tokens), self.computed + PREFILL_CHUNK)

    def next_chunk(self) -> Chunk:
        """The tokens that the next step computes."""
        start, end = self.computed, self.chunk_end()
        window, top = tuple(self.tokens[max(0, start - NGRAM_WINDOW) : end]), self.request.sampling.top_logprobs
        return Chunk(window, start, end - start, tuple(self.pages), end == len(self.tokens), top)

    def append(self, choice: Choice) -> None:
        """Adds a token to the output, and finishes the request where a stop condition is met."""
        self.tokens.append(choice.token)
        self.choices.append(choice)
        self.finish = _finish(self.request.sampling, self.output, choice.token)

    def keep_reported(self) -> None:
        """Drops the output tokens of which SGLang's front end has not been told."""
        if not self.request.stream:
            reported = len(self.output) // REPORTED_EVERY * REPORTED_EVERY
            del self.tokens[len(self.request.prompt) + reported :]
            del self.choices[reported:]
            self.relabellings = [(version, min(reported, end)) for version, end in self.relabellings]

    def relabelled(self, old: str) -> None:
        """The tokens so far are of weights of the version `old` at the latest."""
        if self.output:
            self.relabellings.append((old, len(self.output)))

    def snapshot(self, version: str) -> Output:
        """The output for the front end; `version` is that of the weights now."""
        wanted = self.request.sampling.top_logprobs is not None
        return Output(
            self.rid,
            tuple(self.output),
            self.finish,
            len(self.request.prompt),
            self.cached,
            self.retractions,
            _spans([*self.relabellings, (version, len(self.output))]) if self.finish else (),
            tuple(self.choices) if wanted else None,
        )


def _spans(changes: list[tuple[str, int]]) -> tuple[Span, ...]:
    """A span for each version that generated a token, in order.

    Source: sglang 0.5.23, utils/weight_versions.py compute_weight_version_spans.
    """
    spans: list[Span] = []
    for version, end in changes:
        begun = spans[-1][2] if spans else 0
        if spans and end <= begun:
            continue
        if spans and spans[-1][0] == version:
            spans[-1] = (version, spans[-1][1], end)
        else:
            spans.append((version, begun, end))
    return tuple(spans)


def _finish(sampling: Sampling, output: list[int], token: int) -> FinishReason | None:
    if token in sampling.stop_token_ids or (token == tokenizer.EOS and not sampling.ignore_eos):
        return {"type": "stop", "matched": token}
    if sampling.stop:
        # Only the last token can have completed a stop string, so that the longest one's length of tail is enough.
        longest = max(len(each.encode()) for each in sampling.stop)
        tail = tokenizer.decode(output[-longest:])
        for stop in sampling.stop:
            if stop in tail:
                return {"type": "stop", "matched": stop}
    if len(output) >= sampling.max_new_tokens:
        return {"type": "length", "length": sampling.max_new_tokens}
    return None
