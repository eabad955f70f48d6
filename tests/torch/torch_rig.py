"""A small language model in this process, and an engine whose memory is returned to the operating system."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lifecycle.adapters.torch_memory_saver import TorchEngine

from lifecycle import Policy

MIB = 1 << 20
#: Thresholds at which a release of 20 MiB is measurable in a process with torch.
POLICY = Policy(residual_threshold_gib=4.0, visible_bytes=4 * MIB, visible_fraction=0.001, settle_s=0.5, poll_s=0.02)
PROMPT = (3, 1, 4, 1, 5)


class Model(torch.nn.Module):
    """Token ids to logits over `width` tokens: an embedding tied to its head, one mixing layer, a buffer."""

    def __init__(self, width: int = 1024, vocabulary: int = 4096) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, width)
        self.mix = torch.nn.Linear(width, width)
        self.head = torch.nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.full((width,), 0.5))
        self.register_buffer("scratch", torch.arange(5.0), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of the next token, for ids [batch, length]."""
        hidden = self.embedding(ids).cumsum(1)
        return self.head(torch.tanh(self.mix(hidden)) * self.scale)


def greedy(model: Model, prompt: tuple[int, ...] = PROMPT, tokens: int = 8) -> list[int]:
    """The tokens that the model generates."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(tokens):
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], 1)
    return ids[0, len(prompt) :].tolist()


def seeded(seed: int, **shape: Any) -> Model:
    """A new model with weights from this seed."""
    torch.manual_seed(seed)
    return Model(**shape)


@contextmanager
def built(
    name: str = "policy", *, seed: int = 0, kv_mib: int = 64, **options: Any
) -> Iterator[tuple[TorchEngine, Any]]:
    """An engine of a fresh model (20 MiB) with a KV cache, not yet connected, and the model."""
    options.setdefault("policy", POLICY)
    engine = TorchEngine(name, device="cpu", **options)
    with engine.region("weights"):
        model = seeded(seed)
    with engine.region("kv_cache"):
        model.kv = torch.ones(kv_mib * MIB // 4)  # an attribute of the module, as attention layers hold it
    engine.attach(model, generate=lambda probe: greedy(model, tokens=probe.tokens))
    try:
        yield engine, model
    finally:
        engine.adapter.tenant.tags.close()
