"""Builds the engine and the HTTP application of a dialect: the one place that tells the dialects apart."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import ASGIApp

from .dialect import TOKENSPEED, VLLM
from .engine import Engine
from .options import EngineOptions
from .pipeline import Pipeline


def build(options: EngineOptions, pipelines: Sequence[Pipeline]) -> tuple[Engine, ASGIApp]:
    """The engine, and the application through which its dialect is spoken. Raises BadWeights."""
    if options.dialect.engine == VLLM:
        from .vllm.app import build_app as vllm_app
        from .vllm.engine import VllmEngine

        vllm = VllmEngine(options, pipelines)
        return vllm, vllm_app(vllm)
    if options.dialect.engine == TOKENSPEED:
        from .tokenspeed.app import build_app as tokenspeed_app
        from .tokenspeed.engine import TokenspeedEngine

        tokenspeed = TokenspeedEngine(options, pipelines)
        return tokenspeed, tokenspeed_app(tokenspeed)
    from .sglang.app import build_app as sglang_app
    from .sglang.engine import SGLangEngine

    sglang = SGLangEngine(options, pipelines)
    return sglang, sglang_app(sglang)
