"""A decoder of several GiB with its KV cache, for measuring; random weights, greedy, one token at a time."""

from __future__ import annotations

from typing import Any

import torch

GIB = 1 << 30


class Layer(torch.nn.Module):
    """One decoder layer: norms (small tensors), attention, a gated-free feed-forward of four times the width."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.norm2 = (torch.nn.Parameter(torch.ones(width, dtype=dtype)) for _ in range(2))
        self.qkv = torch.nn.Linear(width, 3 * width, dtype=dtype)
        self.out = torch.nn.Linear(width, width, dtype=dtype)
        self.up = torch.nn.Linear(width, 4 * width, dtype=dtype)
        self.down = torch.nn.Linear(4 * width, width, dtype=dtype)

    def forward(self, x: torch.Tensor, cache: torch.Tensor, position: int) -> torch.Tensor:
        """Hidden states [batch, width]; cache [2, batch, time, width] gets this position's key and value."""
        width = x.size(1)
        query, key, value = self.qkv(torch.nn.functional.rms_norm(x, (width,), self.norm)).split(width, 1)
        cache[0, :, position], cache[1, :, position] = key, value
        seen = cache[:, :, : position + 1]
        scores = torch.einsum("bw,btw->bt", query, seen[0]).float() / width**0.5
        x = x + self.out(torch.einsum("bt,btw->bw", scores.softmax(-1).to(x.dtype), seen[1]))
        inner = torch.relu(self.up(torch.nn.functional.rms_norm(x, (width,), self.norm2)))
        return x + self.down(inner)


class Decoder(torch.nn.Module):
    """Token ids [batch] and a position to logits [batch, vocabulary]; head and embedding are tied."""

    def __init__(self, size_bytes: int, width: int, dtype: torch.dtype, vocabulary: int = 32000) -> None:
        super().__init__()
        count = max(1, round((size_bytes / dtype.itemsize - vocabulary * width) / (12 * width * width)))
        self.embedding = torch.nn.Embedding(vocabulary, width, dtype=dtype)
        self.layers = torch.nn.ModuleList(Layer(width, dtype) for _ in range(count))
        self.head = torch.nn.Linear(width, vocabulary, bias=False, dtype=dtype)
        self.head.weight = self.embedding.weight
        self.register_buffer(
            "places", torch.linspace(0, 1, 64, dtype=dtype)[:, None].repeat(1, width), persistent=False
        )

    def forward(self, ids: torch.Tensor, cache: torch.Tensor, position: int) -> torch.Tensor:
        """Logits after `ids` at `position`; cache [layers, 2, batch, time, width]."""
        x = self.embedding(ids) + self.places[position]
        for index, layer in enumerate(self.layers):
            x = layer(x, cache[index], position)
        return self.head(x)

    def bytes(self) -> int:
        """Bytes of its parameters and buffers, tied ones once."""
        return sum(each.nbytes for each in (*self.parameters(), *self.buffers()))


def new_cache(model: Decoder, size_bytes: int, batch: int) -> torch.Tensor:
    """A KV cache of about this size on the model's device."""
    weight = model.embedding.weight
    row = len(model.layers) * 2 * batch * weight.size(1) * weight.dtype.itemsize
    shape = (len(model.layers), 2, batch, max(16, size_bytes // row), weight.size(1))
    return torch.zeros(shape, dtype=weight.dtype, device=weight.device)


@torch.no_grad()
def logits_of(model: Decoder, cache: torch.Tensor, steps: int = 8) -> torch.Tensor:
    """Logits of `steps` greedy steps from fixed tokens [steps, batch, vocabulary], on the host."""
    ids = torch.arange(cache.size(2), device=cache.device) + 17
    found = []
    for position in range(steps):
        logits = model(ids, cache, position)
        found.append(logits.cpu())
        ids = logits.argmax(-1)
    return torch.stack(found)


class Graph:
    """A CUDA graph of one decoding step at a fixed position. What its warm-up allocates stays: make it in a region."""

    def __init__(self, model: Decoder, cache: torch.Tensor) -> None:
        self.ids = torch.arange(cache.size(2), device=cache.device) + 5
        self.graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(side):
            model(self.ids, cache, 9)
        torch.cuda.current_stream().wait_stream(side)

    def capture(self, model: Decoder, cache: torch.Tensor, capturing: Any) -> None:
        """The step is captured inside `capturing(graph)`; its output lies in the graph's memory."""
        with torch.no_grad(), capturing(self.graph):
            self.logits = model(self.ids, cache, 9)

    def replayed(self, cache: torch.Tensor) -> torch.Tensor:
        """The graph's logits from a cache whose earlier positions are zero, on the host."""
        cache[..., :10, :].zero_()
        self.ids.copy_(torch.arange(cache.size(2)) + 5)  # its region was released and came back as garbage
        self.graph.replay()
        return self.logits.cpu()
