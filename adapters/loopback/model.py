"""The layers of one pipeline rank of a decoder-only transformer, in float32 NumPy.

Each token of each row is computed by matrix-vector products of its own, in prefill and in decode alike. The output of a
row therefore does not depend on the other rows of its batch, and a prefill after a retract gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .shape import HEAD_DIM, HEADS, HIDDEN, PAGE_TOKENS

Floats = NDArray[np.float32]

NGRAM_WINDOW = 4  # tokens before a chunk that the n-gram of the last layer includes
_EPSILON = np.float32(1e-5)
_SCALE = np.float32(HEAD_DIM**-0.5)
_FREQUENCIES = (10000.0 ** -(np.arange(HIDDEN // 2) / (HIDDEN // 2))).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Choice:
    """The token that was chosen, and where they are wanted its log probability and those of the likeliest tokens."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[float, int], ...] = ()  # likeliest first


@dataclass(frozen=True, slots=True)
class Chunk:
    """The consecutive tokens of one row that one step computes."""

    window: tuple[int, ...]  # up to NGRAM_WINDOW earlier tokens, then the chunk's own
    start: int  # position of the first
    count: int
    pages: tuple[int, ...]  # the row's pages of the KV pool, in order
    wants_token: bool
    top_logprobs: int | None = None  # how many of the likeliest tokens are wanted with the next one; None: no figures

    def ngram(self, index: int, length: int) -> tuple[int, ...]:
        """The `length` tokens that end with the chunk's `index`-th; fewer at the beginning of the row."""
        end = len(self.window) - self.count + index + 1
        return self.window[max(0, end - length) : end]


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer, as views of the rank's region, and its part of the KV pool."""

    ngram_length: int
    ngram_table: Floats
    input_norm: Floats
    qkv: Floats
    out: Floats
    post_norm: Floats
    up: Floats
    down: Floats
    keys: Floats  # [pages, PAGE_TOKENS, HIDDEN]
    values: Floats


class Shard:
    """The layers of a rank. The first rank embeds tokens, the last one chooses the next token."""

    def __init__(self, weights: Mapping[str, Floats], kv: Floats, layers: range) -> None:
        self._weights = weights
        self._layers = [_layer(weights, index, kv[nth]) for nth, index in enumerate(layers)]

    def forward(self, chunk: Chunk, hidden: Floats | None) -> Floats | Choice | None:
        """The hidden states [tokens, HIDDEN] for the next rank; from the last rank the next token, or None."""
        states = self._embed(chunk) if hidden is None else hidden
        pages = np.array(chunk.pages, dtype=np.intp)
        for layer in self._layers:
            states = np.stack([_layer_step(layer, states[i], chunk, i, pages) for i in range(chunk.count)])
        if "lm_head" not in self._weights:
            return states
        return self._choose(states[-1], chunk.top_logprobs) if chunk.wants_token else None

    def _embed(self, chunk: Chunk) -> Floats:
        own = np.array(chunk.window[-chunk.count :])
        positions = np.arange(chunk.start, chunk.start + chunk.count, dtype=np.float32)
        angles = positions[:, None] * _FREQUENCIES
        embedded: Floats = self._weights["embed_tokens"][own] + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        return embedded

    def _choose(self, state: Floats, top: int | None) -> Choice:
        logits = _norm(state, self._weights["final_norm"]) @ self._weights["lm_head"] + self._weights["lm_head_bias"]
        token = int(np.argmax(logits))
        if top is None:
            return Choice(token)
        shifted = logits - logits[token]
        logprobs = shifted - np.log(np.exp(shifted).sum())
        likeliest = np.argsort(-logprobs, kind="stable")[:top]
        return Choice(token, float(logprobs[token]), tuple((float(logprobs[each]), int(each)) for each in likeliest))


def _layer(weights: Mapping[str, Floats], index: int, kv: Floats) -> Layer:
    names = ("ngram_table", "input_norm", "qkv", "out", "post_norm", "up", "down")
    own = {name: weights[f"layers.{index}.{name}"] for name in names}
    return Layer(ngram_length=index + 2, keys=kv[0], values=kv[1], **own)


def _layer_step(layer: Layer, state: Floats, chunk: Chunk, index: int, pages: NDArray[np.intp]) -> Floats:
    """Computes one token in one layer, and writes its key and value to the pool."""
    state = state + layer.ngram_table[_row(chunk.ngram(index, layer.ngram_length), len(layer.ngram_table))]
    state = state + _attend(layer, _norm(state, layer.input_norm) @ layer.qkv, chunk.start + index, pages) @ layer.out
    grown = np.maximum(_norm(state, layer.post_norm) @ layer.up, 0)
    after: Floats = state + grown @ layer.down
    return after


def _attend(layer: Layer, qkv: Floats, position: int, pages: NDArray[np.intp]) -> Floats:
    query, key, value = qkv[:HIDDEN], qkv[HIDDEN : 2 * HIDDEN], qkv[2 * HIDDEN :]
    page, slot = pages[position // PAGE_TOKENS], position % PAGE_TOKENS
    layer.keys[page, slot], layer.values[page, slot] = key, value
    seen = pages[: position // PAGE_TOKENS + 1]
    scores = _by_head(layer.keys[seen], position + 1) @ query.reshape(HEADS, HEAD_DIM, 1) * _SCALE  # [heads, tokens, 1]
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    mixed: Floats = weights.transpose(0, 2, 1) @ _by_head(layer.values[seen], position + 1)
    return mixed.reshape(HIDDEN)


def _by_head(pages: Floats, tokens: int) -> Floats:
    return pages.reshape(-1, HEADS, HEAD_DIM)[:tokens].transpose(1, 0, 2)  # [heads, tokens, head dim]


def _norm(state: Floats, gain: Floats) -> Floats:
    normed: Floats = state * (gain / np.sqrt(np.dot(state, state) / np.float32(HIDDEN) + _EPSILON))
    return normed


def _row(ngram: Sequence[int], rows: int) -> int:
    value = 0
    for token in ngram:
        value = (value * 0x100000001B3 + token + 1) & 0xFFFFFFFFFFFFFFFF
    return (value ^ value >> 29) % rows
