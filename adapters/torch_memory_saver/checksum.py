"""A 64-bit checksum of bytes where they are, the same on every device: no bytes travel to be summed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from .tensors import Span

#: Words of 8 bytes in a row; each row is summed by itself.
_WORDS = 1 << 17
_ROW_BYTES = 8 * _WORDS
#: Rows summed at once on an accelerator, each taking 1 MiB of scratch memory; one on a CPU.
_ROWS = 16
_MASK = (1 << 64) - 1
_PRIME = 0x100000001B3
_weights: dict[torch.device, torch.Tensor] = {}


def checksums(spans: Iterable[Span]) -> list[int]:
    """One checksum of each span. The sums are integers that wrap around, so no order of adding changes them."""
    return [checksum(span.bytes()) for span in spans]


def combined(sums: Iterable[int]) -> str:
    """Many checksums in one, in hexadecimal; their order counts."""
    return f"{_mixed(0xCBF29CE484222325, sums):016x}"


def checksum(data: torch.Tensor) -> int:
    """The checksum of a uint8 tensor: every byte counts, and so does its place."""
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
    """The bytes as words, in rows; the last row is shorter, its last word filled up with zeros."""
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
    """Odd numbers, one for each place in a row: a word cannot vanish, and two that change places show."""
    if device not in _weights:
        generator = torch.Generator().manual_seed(0)
        numbers = torch.randint(-(1 << 62), 1 << 62, (_WORDS,), generator=generator)
        _weights[device] = (numbers * 2 + 1).to(device)
    return _weights[device]
