"""The adapter of the loopback engine: SGLang's, unchanged. There is no private endpoint."""

from __future__ import annotations

from ..sglang import SGLangAdapter


class LoopbackAdapter(SGLangAdapter):
    """Drives one loopback engine as if it were SGLang."""
