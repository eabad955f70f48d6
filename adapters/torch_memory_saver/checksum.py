"""A 64-bit checksum of bytes, computed on the device that holds them and equal on every device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from .tensors import Span

#: Words of 8 bytes in a row. Each row has a sum of its own.
_WORDS = 1 << 17
_ROW_BYTES = 8 * _WORDS
#: Rows summed at once on an accelerator, each with 1 MiB of scratch memory. On a CPU it is one row.
_ROWS = 16
_MASK = (1 << 64) - 1
_PRIME = 0x100000001B3
_weights: dict[torch.device, torch.Tensor] = {}


def checksums(spans: Iterable[Span]) -> list[int]:
    """The checksum of each span. Sums are integers that wrap around, so the order of addition does not change them."""
    return [checksum(span.bytes()) for span in spans]


def combined(sums: Iterable[int]) -> str:
    """One checksum of a sequence of checksums, in hexadecimal. It depends on their order."""
    return f"{_mixed(0xCBF29CE484222325, sums):016x}"


def checksum(data: torch.Tensor) -> int:
    """The checksum of a uint8 tensor. It depends on every byte and on its position."""
    return _mixed(data.numel(), (each for rows in _rows(data) for each in _summed(rows)))


def _mixed(total: int, sums: Iterable[int]) -> int:
    for each in sums:
        total = ((total ^ (each & _MASK)) * _PRIME) & _MASK
    return total


def _summed(rows: torch.Tensor) -> list[int]:
    weights = _weights_on(rows.device)[: rows.size(1)]
    sums: list[int] = (rows * weights).sum(1).tolist()
    return sums


def _rows(data: torch.Tensor) -> Iterator[torch.Tensor]:
    """The bytes as rows of words. The last row is shorter, and its last word is padded with zeros."""
    at_once = _ROW_BYTES * (1 if data.device.type == "cpu" else _ROWS)
    whole = data.numel() // _ROW_BYTES * _ROW_BYTES
    for start in range(0, whole, at_once):
        yield _as_words(data[start : min(start + at_once, whole)]).view(-1, _WORDS)
    if whole < data.numel():
        yield _as_words(data[whole:]).view(1, -1)


def _as_words(chunk: torch.Tensor) -> torch.Tensor:
    if chunk.numel() % 8 == 0 and chunk.data_ptr() % 8 == 0 and chunk.storage_offset() % 8 == 0:
        return chunk.view(torch.int64)
    padded = torch.zeros(-(-chunk.numel() // 8) * 8, dtype=torch.uint8, device=chunk.device)
    padded[: chunk.numel()].copy_(chunk)
    return padded.view(torch.int64)


def _weights_on(device: torch.device) -> torch.Tensor:
    """One random odd factor for each word of a row.

    An odd factor is invertible modulo 2**64, so that every change of one word changes the sum. Different factors make
    the sum change when two different words are exchanged.
    """
    if device not in _weights:
        generator = torch.Generator().manual_seed(0)
        numbers = torch.randint(-(1 << 62), 1 << 62, (_WORDS,), generator=generator)
        _weights[device] = (numbers * 2 + 1).to(device)
    return _weights[device]
