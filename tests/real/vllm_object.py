"""A real vLLM in this process, on a CPU: an `AsyncLLM` on a loop of its own thread, or an `LLM`.

This runs inside vLLM's own environment (`in_process.py`).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from engine_thread import EngineThread
from lifecycle.adapters.vllm_in_process import InProcessVLLM

from lifecycle import BaseObserver, Engine, FromDisk, Grade, Policy
from lifecycle.nodes.probes import NoProbe

TOKENS = 400
MODELS = Path(__file__).resolve().parents[2] / ".cache" / "real" / "models"
KV_BYTES = 256 << 20

#: Its processes hold some 1 GiB beside weights and KV.
POLICY = Policy(residual_threshold_gib=1.0, settle_s=2.0, deadlines_s={"release": 6})

#: Takes what the engine acknowledges of its memory, which nothing measures then.
UNSEEN = Policy(
    accept=dict.fromkeys(("memory_returned", "tags_unmapped", "weights_mapped", "kv_mapped"), Grade.ACKNOWLEDGED)
)

_numbers = itertools.count(1)


def model(seed: int) -> str:
    """The folder of this seed's Qwen2, which the lane has made before."""
    return str(MODELS / f"qwen2-{seed}")


def source(seed: int) -> FromDisk:
    """The weights of this checkpoint, under a label of its own."""
    return FromDisk(model(seed), f"seed-{seed}")


def arguments() -> dict[str, Any]:
    """The arguments that both objects are constructed with."""
    return {
        "model": model(0),
        "dtype": "float32",
        "max_model_len": 4096,
        "max_num_seqs": 16,
        "kv_cache_memory_bytes": KV_BYTES,
        "enforce_eager": True,
    }


def greedy(tokens: int) -> Any:
    """Exactly so many tokens, the likeliest."""
    from vllm import SamplingParams

    return SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)


class AsyncLLMThread(EngineThread):
    """An `AsyncLLM` whose event loop runs in a thread of its own."""

    tokens = TOKENS

    async def made(self) -> Any:
        """An `AsyncLLM` of the loop that calls this."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments()))

    @property
    def core(self) -> int:
        """The pid of its engine core."""
        [core] = self.engine.engine_core.resources.engine_manager.processes
        return int(core.pid)

    async def chunks(self, prompt: str, tokens: int) -> AsyncIterator[tuple[tuple[int, ...], str | None]]:
        """All tokens of a greedy request so far, and why it ended, once for each of its chunks."""
        request = self.engine.generate({"prompt": prompt}, greedy(tokens), f"r{next(_numbers)}")
        async for output in request:
            yield tuple(output.outputs[0].token_ids), output.outputs[0].finish_reason


def engine_of(llm: Any, *observers: BaseObserver, seen: bool = False) -> Engine:
    """An engine of this object. Unless `seen` nothing measures its memory, by consent."""
    size = (Path(model(0)) / "model.safetensors").stat().st_size
    adapter = InProcessVLLM(llm, name=f"e{next(_numbers)}", sizes={"weights": size, "kv_cache": KV_BYTES})
    if seen:
        return Engine(adapter, name="e", policy=POLICY)
    return Engine(adapter, name="e", policy=UNSEEN, probe=NoProbe("vLLM frees nothing on a CPU"), observers=observers)


def kill_core(pid: int) -> list[psutil.Process]:
    """The engine core of this pid is killed. Its workers, which are not ended by that."""
    core = psutil.Process(pid)
    workers = core.children(recursive=True)
    core.kill()
    core.wait(10)
    return workers


def end(processes: Sequence[psutil.Process]) -> None:
    """These processes have ended."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive
