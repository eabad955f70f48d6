"""The adapter of the loopback engine is SGLang's, unchanged: the engine has no endpoint of its own for it."""

from __future__ import annotations

from ..sglang import SGLangAdapter


class LoopbackAdapter(SGLangAdapter):
    """Drives one loopback engine as if it were SGLang."""
