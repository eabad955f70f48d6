"""A byte-level tokenizer: a token below 256 is that byte."""

from __future__ import annotations

from collections.abc import Sequence

BOS = 256
EOS = 257


def encode(text: str) -> list[int]:
    """The text's UTF-8 bytes."""
    return list(text.encode())


def decode(ids: Sequence[int]) -> str:
    """The text; specials vanish and broken UTF-8 becomes the replacement character."""
    return bytes(token for token in ids if token < 256).decode(errors="replace")
