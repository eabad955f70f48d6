"""A real vLLM in this process, on a CPU: an `AsyncLLM` on a loop of its own thread, or an `LLM`, and their requests.

This runs inside vLLM's own environment (`in_process.py`).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lifecycle.adapters.vllm_in_process import InProcessVLLM

from lifecycle import BaseObserver, Engine, FromDisk, Grade, Policy, State, Transition
from lifecycle.nodes.probes import NoProbe

PROMPTS = ("hello", "zebra", "once upon a time", "def main():")
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


@dataclass(slots=True)
class Request:
    """One request of an `AsyncLLM`, read to its end: its tokens, and why it ended."""

    prompt: str
    ids: tuple[int, ...] = ()
    reason: str | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def join(self) -> Request:
        """It has ended."""
        assert self.ended.wait(120), f"{self.prompt}: it has not ended, after {len(self.ids)} tokens"
        assert self.error is None, self.error
        return self


class AsyncLLMThread:
    """An `AsyncLLM` whose event loop runs in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.llm: Any = self.on_loop(self._made(), 400)

    async def _made(self) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments()))

    def on_loop(self, coroutine: Any, deadline_s: float = 60.0) -> Any:
        """What the coroutine returns, on the engine's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(deadline_s)

    def close(self) -> None:
        """Its processes have ended."""
        self.llm.shutdown()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)

    @property
    def core(self) -> int:
        """The pid of its engine core."""
        [core] = self.llm.engine_core.resources.engine_manager.processes
        return int(core.pid)

    def ask(self, prompt: str, tokens: int) -> Request:
        """A request that runs on the engine's loop."""
        request = Request(prompt)
        asyncio.run_coroutine_threadsafe(self._read(request, tokens), self.loop)
        return request

    async def _read(self, request: Request, tokens: int) -> None:
        try:
            async for output in self.llm.generate({"prompt": request.prompt}, greedy(tokens), f"r{next(_numbers)}"):
                request.ids = tuple(output.outputs[0].token_ids)
                request.reason = output.outputs[0].finish_reason
        except Exception as error:
            request.error = error
        finally:
            request.ended.set()

    def alone(self, tokens: int) -> dict[str, tuple[int, ...]]:
        """What each prompt is answered with."""
        asked = [self.ask(prompt, tokens) for prompt in PROMPTS]
        return {each.prompt: each.join().ids for each in asked}

    def in_flight(self, tokens: int = TOKENS) -> list[Request]:
        """Requests after all prompts, each of which has got a token."""
        asked = [self.ask(prompt, tokens) for prompt in PROMPTS]
        until(lambda: all(each.ids for each in asked))
        return asked


def until(condition: Any, deadline_s: float = 60.0) -> None:
    """The condition holds; AssertionError where it does not in time."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.005)


def engine_of(llm: Any, *observers: BaseObserver, seen: bool = False) -> Engine:
    """An engine of this object. Unless `seen` nothing measures its memory, by consent."""
    size = (Path(model(0)) / "model.safetensors").stat().st_size
    adapter = InProcessVLLM(llm, name=f"e{next(_numbers)}", sizes={"weights": size, "kv_cache": KV_BYTES})
    if seen:
        return Engine(adapter, name="e", policy=POLICY)
    return Engine(adapter, name="e", policy=UNSEEN, probe=NoProbe("vLLM frees nothing on a CPU"), observers=observers)


class StopsBeforeACall(BaseObserver):
    """Stops the process once a pause has asked what it needs, before its first call, which lasts until `go_on`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.stopped = threading.Event()

    def transition(self, record: Transition) -> None:
        """The process takes no step where a command has begun."""
        if record.dest is State.PAUSING:
            os.kill(self._pid, signal.SIGSTOP)
            self.stopped.set()

    def go_on(self) -> None:
        """The process goes on."""
        os.kill(self._pid, signal.SIGCONT)
