"""Routers that list their workers at `/workers`: sglang-router, smg and vllm-router."""

from .router import SGLangRouter, SMGRouter, VLLMRouter, WorkersRouter

__all__ = ["SGLangRouter", "SMGRouter", "VLLMRouter", "WorkersRouter"]
