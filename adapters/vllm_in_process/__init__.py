"""Drives a vLLM that lives in this process: an `AsyncLLM`, or an `LLM`.

    engine = Engine(InProcessVLLM(async_llm, name="rollout-0"))
    async with Fleet([engine]) as fleet: ...

Which calls there are, in which order, and what each does to the engine is as over HTTP: `adapters/vllm/plan.py` has it.
Source for every claim about vLLM here, unless it says otherwise: vllm 0.32.0, run on a CPU; what is said of GPU memory
was read.
"""

from .adapter import InProcessVLLM

__all__ = ["InProcessVLLM"]
