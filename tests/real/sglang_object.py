"""A real SGLang `Engine` in this process, on a CPU, with the stand-in for torch_memory_saver.

This runs inside SGLang's own environment (`in_process.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from engine_thread import EngineThread
from lifecycle.adapters.sglang_in_process import InProcessSGLang
from measure import expected_weights

from lifecycle import BaseObserver, Engine, FromDisk, Policy

TOKENS = 300
MODELS = Path(__file__).resolve().parents[2] / ".cache" / "real" / "models"

#: Its processes hold some 1 GiB beside weights (274 MiB) and KV (288 MiB).
POLICY = Policy(residual_threshold_gib=1.8)

_numbers = itertools.count(1)


def model(seed: int) -> str:
    """The folder of this seed's Llama, which the lane has made before."""
    return str(MODELS / f"llama-{seed}")


def source(seed: int) -> FromDisk:
    """The weights of this checkpoint, under a label of its own."""
    return FromDisk(model(seed), f"seed-{seed}")


def engine_of(sglang: Any, *observers: BaseObserver) -> Engine:
    """An engine of this object."""
    sizes = {"weights": expected_weights(Path(model(0)))}
    adapter = InProcessSGLang(sglang, name=f"e{next(_numbers)}", sizes=sizes)
    return Engine(adapter, name="e", policy=POLICY, observers=observers)


def greedy(tokens: int) -> dict[str, Any]:
    """Exactly so many tokens, the likeliest."""
    return {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}


class SGLangThread(EngineThread):
    """An `Engine` whose event loop runs in a thread of its own."""

    tokens = TOKENS

    async def made(self) -> Any:
        """An `Engine` of the thread and the loop that call this."""
        from sglang.srt.entrypoints.engine import Engine as SGLangEngine

        return SGLangEngine(
            model_path=model(0),
            device="cpu",
            attention_backend="torch_native",
            disable_overlap_schedule=True,
            skip_server_warmup=True,
            disable_cuda_graph=True,
            mem_fraction_static=0.2,
            max_total_tokens=12288,
            context_length=4096,
            max_running_requests=4,
            sampling_backend="pytorch",
            grammar_backend="none",
            dtype="float32",
            enable_memory_saver=True,
        )

    @property
    def scheduler(self) -> int:
        """The pid of its scheduler."""
        return int(self.engine.get_all_child_pids()[0])

    async def chunks(self, prompt: str, tokens: int) -> AsyncIterator[tuple[tuple[int, ...], str | None]]:
        """All tokens of a greedy request so far, and why it ended, once for each of its chunks."""
        async for chunk in await self.engine.async_generate(prompt, greedy(tokens), stream=True):
            finish = chunk["meta_info"]["finish_reason"]
            yield tuple(chunk["output_ids"]), finish and finish["type"]
