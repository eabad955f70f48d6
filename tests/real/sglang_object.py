"""A real SGLang `Engine` in this process, on a CPU, with the stand-in for torch_memory_saver, and its requests.

This runs inside SGLang's own environment (`in_process.py`).
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

from lifecycle.adapters.sglang_in_process import InProcessSGLang
from measure import expected_weights

from lifecycle import BaseObserver, Engine, FromDisk, Policy, State, Transition

PROMPTS = ("hello", "zebra", "once upon a time", "def main():")
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


def started() -> Any:
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


def engine_of(sglang: Any, *observers: BaseObserver) -> Engine:
    """An engine of this object."""
    sizes = {"weights": expected_weights(Path(model(0)))}
    adapter = InProcessSGLang(sglang, name=f"e{next(_numbers)}", sizes=sizes)
    return Engine(adapter, name="e", policy=POLICY, observers=observers)


def greedy(tokens: int) -> dict[str, Any]:
    """Exactly so many tokens, the likeliest."""
    return {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}


@dataclass(slots=True)
class Request:
    """One request, read to its end: its tokens, and why it ended."""

    prompt: str
    ids: tuple[int, ...] = ()
    reason: str | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def join(self) -> Request:
        """It has ended."""
        assert self.ended.wait(180), f"{self.prompt}: it has not ended, after {len(self.ids)} tokens"
        assert self.error is None, self.error
        return self


class EngineThread:
    """An `Engine` whose event loop runs in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.engine: Any = self.on_loop(self._made(), 400)

    async def _made(self) -> Any:
        return started()

    def on_loop(self, coroutine: Any, deadline_s: float = 60.0) -> Any:
        """What the coroutine returns, on the engine's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(deadline_s)

    @property
    def scheduler(self) -> int:
        """The pid of its scheduler."""
        return int(self.engine.get_all_child_pids()[0])

    def ask(self, prompt: str, tokens: int) -> Request:
        """A request that runs on the engine's loop."""
        request = Request(prompt)
        asyncio.run_coroutine_threadsafe(self._read(request, tokens), self.loop)
        return request

    async def _read(self, request: Request, tokens: int) -> None:
        try:
            async for chunk in await self.engine.async_generate(request.prompt, greedy(tokens), stream=True):
                request.ids = tuple(chunk["output_ids"])
                finish = chunk["meta_info"]["finish_reason"]
                request.reason = finish and finish["type"]
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
        end = time.monotonic() + 60
        while not all(each.ids for each in asked):
            assert time.monotonic() < end, [each.error for each in asked]
            time.sleep(0.005)
        return asked


class StopsBeforeACall(BaseObserver):
    """Stops the process once a command has asked what it needs, before its first call, which lasts until `go_on`."""

    def __init__(self, pid: int, before: State) -> None:
        self._pid, self._before = pid, before
        self.stopped = threading.Event()

    def transition(self, record: Transition) -> None:
        """The process takes no step where that command has begun."""
        if record.dest is self._before:
            os.kill(self._pid, signal.SIGSTOP)
            self.stopped.set()

    def go_on(self) -> None:
        """The process goes on."""
        os.kill(self._pid, signal.SIGCONT)
