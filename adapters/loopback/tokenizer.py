"""A byte-level tokenizer: a token below 256 stands for the byte of that value."""

from __future__ import annotations

from collections.abc import Sequence

BOS = 256
EOS = 257


def encode(text: str) -> list[int]:
    """The text's UTF-8 bytes."""
    return list(text.encode())


def decode(ids: Sequence[int]) -> str:
    """The text of these tokens. Special tokens are left out; invalid UTF-8 becomes the replacement character."""
    return bytes(token for token in ids if token < 256).decode(errors="replace")
