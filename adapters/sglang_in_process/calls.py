"""The coroutines of an SGLang `Engine` in this process that make the calls of a plan, and what it says of itself.

The `Engine` has methods for some of them, which block: each runs the engine's loop until it is done, and raises where
that runs already. It has none for a pause and a continue. All of them are coroutines of its tokenizer manager, which is
bound to the loop on which it was first used: a call that another loop awaits never returns.
Source: sglang 0.5.23, entrypoints/engine.py, managers/tokenizer_manager.py, managers/tokenizer_control_mixin.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from lifecycle.core.calls import Call
from lifecycle.core.observation import Probe
from lifecycle.core.readings import Process
from lifecycle.nodes.processes import by_pid

from ..sglang.plan import CLOSE_PUSH

#: The class of the argument of each call, which is a coroutine of the tokenizer manager.
_REQUESTS: Mapping[str, str] = {
    "pause_generation": "PauseGenerationReqInput",
    "continue_generation": "ContinueGenerationReqInput",
    "release_memory_occupation": "ReleaseMemoryOccupationReqInput",
    "resume_memory_occupation": "ResumeMemoryOccupationReqInput",
    "update_weights_from_disk": "UpdateWeightFromDiskReqInput",
    "begin_weight_update": "BeginWeightUpdateReqInput",
    "end_weight_update": "EndWeightUpdateReqInput",
    "update_weights_from_tensor": "UpdateWeightsFromTensorReqInput",
    "update_weights_from_distributed": "UpdateWeightsFromDistributedReqInput",
}

#: Seconds within which a request that was aborted ends. One that a pause holds back is not, and is left then.
ABORTED_S = 2.0


class SGLangCalls:
    """One `sglang.Engine`. Every method that is a coroutine must run on `loop()`."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._manager = engine.tokenizer_manager

    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop on which it was first used; until then that of its own, which runs while a method of it blocks."""
        loop: asyncio.AbstractEventLoop = self._manager.event_loop or self._engine.loop
        return loop

    async def perform(self, call: Call) -> tuple[bool, str, Any]:
        """Whether the call was done as far as it says, what it said of that, and all that it returned."""
        if call.name == "abort_request":
            self._manager.abort_request(**call.args)
            return True, "", None
        if call.name == "flush_cache":
            return await self.flush(None)
        name = "end_weight_update" if call.name == CLOSE_PUSH else call.name
        request = getattr(import_module("sglang.srt.managers.io_struct"), _REQUESTS[name])
        value = await getattr(self._manager, name)(request(**call.args))
        if isinstance(value, tuple):  # of those that load: whether they did, what is to be said, and more
            return bool(value[0]), str(value[1]), value
        return True, "", value

    async def flush(self, wait_s: float | None) -> tuple[bool, str, Any]:
        """Whether the prefix cache was dropped, which needs an idle scheduler; it waits `wait_s` for that."""
        flushed = await self._manager.flush_cache(wait_s)
        return bool(flushed.success), str(flushed.message), None

    async def server_info(self) -> dict[str, Any]:
        """What `/server_info` of a server says, as far as it is read. It passes through the scheduler."""
        states = await self._manager.get_internal_state()
        arguments = self._engine.server_args
        resolved = arguments.resolved_dict() if hasattr(arguments, "resolved_dict") else dataclasses.asdict(arguments)
        own = {"startup_time": getattr(self._manager, "startup_time", None), "internal_states": states}
        return {**resolved, **own, "version": import_module("sglang").__version__}

    def model_info(self) -> Mapping[str, Any]:
        """What `/model_info` of a server says, as far as it is read."""
        found: Mapping[str, Any] = self._engine.get_model_info()
        return found

    def is_paused(self) -> bool:
        """Whether requests are held back before they reach the scheduler: after a pause of any mode."""
        return bool(self._manager.is_pause)

    def unfinished(self) -> int:
        """Its requests that have not ended: those that are kept, queued or held back among them."""
        return len(self._manager.rid_to_state)

    async def generate(self, probe: Probe, deadline_s: float, look_after_s: float) -> Mapping[str, Any] | str | None:
        """What a probe was answered with. In words that others get tokens meanwhile, where it only queues behind them.

        None where nothing came in time; its request is aborted then.
        """
        rid, params = f"lifecycle-{uuid.uuid4().hex}", {"max_new_tokens": probe.tokens, "temperature": 0}
        asking = asyncio.ensure_future(self._engine.async_generate(probe.text, params, rid=rid))
        end = asyncio.get_running_loop().time() + deadline_s
        try:
            while not asking.done() and (left_s := end - asyncio.get_running_loop().time()) > 0:
                before = self._tokens(rid)
                await asyncio.wait({asking}, timeout=min(look_after_s, left_s))
                now = self._tokens(rid)
                if not asking.done() and any(now.get(other, count + 1) > count for other, count in before.items()):
                    return "kept requests get tokens; a new one queues"
            return asking.result() if asking.done() else None
        finally:
            if not asking.done():
                self._manager.abort_request(rid=rid)
                await asyncio.wait({asking}, timeout=ABORTED_S)
                asking.cancel()
                await asyncio.wait({asking})

    def _tokens(self, rid: str) -> dict[str, int]:
        """How many tokens each other request has got."""
        states = self._manager.rid_to_state
        return {other: len(state.output_ids) for other, state in states.items() if other != rid}

    def processes(self) -> tuple[Process, ...]:
        """The processes that it started: its schedulers', and what stands before and behind those."""
        return tuple(by_pid(pid) for pid in self._engine.get_all_child_pids())
