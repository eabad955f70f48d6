"""The two objects by which vLLM is driven in a process, and how each makes the calls that a plan has.

An `AsyncLLM` belongs to one event loop: a call that another loop awaits never returns. An `LLM` blocks, and its sockets
belong to one thread at a time; its own step loop runs only inside `generate()` and `wait_for_completion()`.
Source: vllm 0.32.0, v1/engine/async_llm.py, v1/engine/llm_engine.py, v1/engine/core_client.py, entrypoints/llm.py.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

from lifecycle.core.calls import Call
from lifecycle.core.errors import ConfigurationError
from lifecycle.core.facts import PauseMode
from lifecycle.core.observation import Probe
from lifecycle.core.readings import Process

from ..home import Home, HomeLoop, HomeThread
from ..vllm.plan import CLOSE_PUSH
from .config import engine_processes

#: The levels of `/sleep`. In process no level is refused: 7 is taken for one, measured on 0.32.0.
LEVELS = ("0", "1", "2")

#: The calls whose one argument is a request object of vLLM's, with its class.
_REQUESTS: Mapping[str, str] = {
    "init_weight_transfer_engine": "WeightTransferInitRequest",
    "update_weights": "WeightTransferUpdateRequest",
}


class Driven(Protocol):
    """One vLLM in this process. A method that returns `Any` is called at its home, and may give an awaitable there."""

    #: Where its calls run.
    home: Home
    #: The pause modes that it lacks.
    lacks: frozenset[PauseMode]
    #: Whether it takes calls beside one that is not answered yet.
    beside: bool
    #: Whether its weights have a label.
    labels: bool

    @property
    def vllm_config(self) -> Any:
        """Its configuration."""

    def perform(self, call: Call) -> Any:
        """What one call returns."""

    def paused(self) -> Any:
        """Whether its scheduler is paused."""

    def label(self) -> Any:
        """The label of its weights."""

    def generate(self, probe: Probe, request_id: str) -> Any:
        """The token ids that it generates for a probe; None where it cannot without taking those of others."""

    def give_up(self, request_id: str) -> Any:
        """Ends the request of a probe."""

    def unfinished(self) -> int:
        """Its requests that have not ended, kept and queued ones among them. Right while it is paused."""

    def died(self) -> bool:
        """Whether it knows that its engine core has ended."""

    def processes(self) -> tuple[Process, ...] | None:
        """The processes of its engine core."""


def driven(llm: Any, name: str, loop: asyncio.AbstractEventLoop | None) -> Driven:
    """What drives this object. Raises ConfigurationError where it is neither, or where its event loop is not known."""
    if hasattr(llm, "pause_generation"):
        return DrivenAsyncLLM(llm, HomeLoop(loop or _loop_of(llm, name), name))
    if hasattr(llm, "llm_engine"):
        return DrivenLLM(llm, HomeThread(name, _same_device()))
    raise ConfigurationError(f"{name}: give an AsyncLLM or an LLM of vLLM, not {type(llm).__name__}")


def _same_device() -> Callable[[], object]:
    """Makes the CUDA device of this thread that of another: each thread has its own, and begins with the first.

    An engine core in this process works in the thread that calls it.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return lambda: None
    device = torch.cuda.current_device()
    return lambda: torch.cuda.set_device(device)


def _loop_of(llm: Any, name: str) -> asyncio.AbstractEventLoop:
    """The loop in which its output handler runs, else the one that runs here: it will be bound to it."""
    handler = getattr(llm, "output_handler", None)
    if handler is not None:
        loop: asyncio.AbstractEventLoop = handler.get_loop()
        return loop
    try:
        return asyncio.get_running_loop()
    except RuntimeError as none:
        raise ConfigurationError(
            f"{name}: an AsyncLLM belongs to the event loop in which its requests run, and none runs here; construct "
            "this in a coroutine on that loop, or give loop="
        ) from none


class DrivenAsyncLLM:
    """An `AsyncLLM`. Its methods are coroutines, and run on its loop."""

    lacks: frozenset[PauseMode] = frozenset()
    beside = True
    labels = True

    def __init__(self, llm: Any, home: Home) -> None:
        self._llm, self.home = llm, home

    @property
    def vllm_config(self) -> Any:
        """Its configuration."""
        return self._llm.vllm_config

    async def perform(self, call: Call) -> Any:
        """What one call returns."""
        method, args = _method_and_args(call, {"pause": "pause_generation", "resume": "resume_generation"})
        return await getattr(self._llm, method)(**args)

    async def paused(self) -> Any:
        """Whether its scheduler is paused."""
        return await self._llm.is_paused()

    async def label(self) -> Any:
        """The label of its weights."""
        return await self._llm.get_weight_version()

    async def generate(self, probe: Probe, request_id: str) -> Sequence[int] | None:
        """The token ids that it generates for a probe."""
        ids: Sequence[int] = ()
        async for output in self._llm.generate({"prompt": probe.text}, _greedy(probe), request_id):
            ids = tuple(output.outputs[0].token_ids)
        return ids

    async def give_up(self, request_id: str) -> None:
        """Aborts the request of a probe."""
        await self._llm.abort(request_id)

    def unfinished(self) -> int:
        """Its requests that have not ended."""
        return int(self._llm.get_num_unfinished_requests())

    def died(self) -> bool:
        """Whether it knows that its engine core has ended."""
        return bool(self._llm.errored)

    def processes(self) -> tuple[Process, ...] | None:
        """The processes of its engine core."""
        return engine_processes(self._llm.engine_core)


class DrivenLLM:
    """An `LLM`. It has no pause and no resume: a sleep of level 0 pauses, and `scheduling` wakes that.

    A sleep of level 0 leaves KV memory with the requests, so that a pause which clears the cache resets it afterwards:
    so does the pause of an `AsyncLLM`. Source: vllm 0.32.0, v1/engine/core.py, sleep and _reset_caches.
    """

    beside = False

    def __init__(self, llm: Any, home: Home) -> None:
        self._llm, self.home = llm, home
        self.labels = hasattr(llm, "get_weight_version")
        in_this_process = getattr(llm.llm_engine.engine_core, "resources", None) is None
        # Source: vllm 0.32.0, v1/engine/core_client.py, InprocClient: wait is refused. Nothing steps there meanwhile.
        self.lacks: frozenset[PauseMode] = frozenset({"wait"}) if in_this_process else frozenset()

    @property
    def vllm_config(self) -> Any:
        """Its configuration."""
        return self._llm.llm_engine.vllm_config

    def perform(self, call: Call) -> Any:
        """What one call returns."""
        if call.name == "pause":
            return self._pause(**_args(call))
        if call.name == "resume":
            return self._llm.wake_up(["scheduling"])
        method, args = _method_and_args(call, {})
        of_engine = self._llm if hasattr(self._llm, method) else self._llm.llm_engine
        return getattr(of_engine, method)(**args)

    def _pause(self, mode: str, clear_cache: bool) -> bool | None:
        self._llm.sleep(level=0, mode=mode)
        return bool(self._llm.reset_prefix_cache(reset_running_requests=True)) if clear_cache else None

    def paused(self) -> Any:
        """Whether its scheduler is paused. It is while memory is asleep: nothing but a full wake opens it then."""
        return self._llm.llm_engine.is_sleeping()

    def label(self) -> Any:
        """The label of its weights."""
        return self._llm.get_weight_version()

    def generate(self, probe: Probe, request_id: str) -> Sequence[int] | None:
        """The token ids that it generates for a probe.

        None where requests were enqueued: `generate` would return their outputs, and their caller would never get them.
        """
        if self.unfinished():
            return None
        [output] = self._llm.generate([{"prompt": probe.text}], _greedy(probe), use_tqdm=False)
        return tuple(output.outputs[0].token_ids)

    def give_up(self, request_id: str) -> None:
        """Nothing: a blocking call ends by itself."""

    def unfinished(self) -> int:
        """Its requests that have not ended, or whose outputs nobody has fetched."""
        return int(self._llm.llm_engine.get_num_unfinished_requests())

    def died(self) -> bool:
        """Whether it knows that its engine core has ended."""
        resources = getattr(self._llm.llm_engine.engine_core, "resources", None)
        return resources is not None and bool(resources.engine_dead)

    def processes(self) -> tuple[Process, ...] | None:
        """The processes of its engine core."""
        return engine_processes(self._llm.llm_engine.engine_core)


def why_not_sent(call: Call) -> str | None:
    """Why this call must not be made, in words; None where it may be."""
    if call.name == "sleep" and call.args["level"] not in LEVELS:
        return f"there is no sleep of level {call.args['level']}, and vLLM would not refuse it: {', '.join(LEVELS)}"
    return None


def _method_and_args(call: Call, named: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The method that makes this call, and its arguments."""
    if call.name in _REQUESTS:
        request = getattr(import_module("vllm.distributed.weight_transfer.base"), _REQUESTS[call.name])
        return call.name, {"request": request(**call.args)}
    name = "finish_weight_update" if call.name == CLOSE_PUSH else call.name
    return named.get(name, name), _args(call)


def _args(call: Call) -> dict[str, Any]:
    """The arguments in the types of the methods: over HTTP all of them are text."""
    args = dict(call.args)
    if "clear_cache" in args:
        args["clear_cache"] = args["clear_cache"] == "true"
    if call.name == "sleep":
        args["level"] = int(args["level"])
    return args


def _greedy(probe: Probe) -> Any:
    return import_module("vllm").SamplingParams(max_tokens=probe.tokens, temperature=0.0)
