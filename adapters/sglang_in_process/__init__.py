"""Drives an SGLang `Engine` that lives in this process.

    engine = Engine(InProcessSGLang(sglang_engine, name="rollout-0"))
    async with Fleet([engine]) as fleet: ...

Which calls there are, in which order, and what each does to the engine is as over HTTP: `adapters/sglang/plan.py` has
it. Source for every claim about SGLang here: sglang 0.5.23, read; `tests/real/test_sglang_in_process.py` is to run it.
"""

from .adapter import InProcessSGLang

__all__ = ["InProcessSGLang"]
