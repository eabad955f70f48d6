"""The vLLM engine: its engine cores, its front end, and what its status endpoints return."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..engine import Engine
from ..options import EngineOptions
from ..pipeline import Pipeline
from .core import EngineCore
from .errors import CoresDiffer, EngineDead
from .front_end import FrontEnd
from .versions import TRAITS

_POLL_S = 0.02
_ABORT_GRACE_S = 1.0


class VllmEngine(Engine):
    """Everything behind vLLM's HTTP API."""

    requests: FrontEnd

    def __init__(self, options: EngineOptions, pipelines: Sequence[Pipeline]) -> None:
        super().__init__(options, pipelines)
        self.traits = TRAITS[options.dialect.release]
        self.cores = [
            EngineCore(options, each, self.faults, self.traits, self.emit, self.crashed, self.model_path)
            for each in pipelines
        ]
        self.requests = FrontEnd(self.cores, options.max_num_queued_reqs if self.traits.caps_queue else None)
        self.instance_id = str(time.time_ns())
        self.sleep_state = (0, 0)  # whether asleep, and at which level: as it was asked, not as it is

    @property
    def schedulers(self) -> Sequence[EngineCore]:
        return self.cores

    async def all_cores(self, name: str, act: Callable[[EngineCore], Any]) -> list[Any]:  # [cores]
        """What `act` returns on every engine core. Raises ApiError where one fails or is dead."""
        if self.requests.dead:
            raise EngineDead()
        # A call that is awaited by nobody any more goes on: the caller's leaving does not undo a pause.
        calls = [core.call(name, _bound(act, core)) for core in self._told(name)]
        return list(await asyncio.gather(*map(self._answered, calls)))

    async def consensus(self, name: str, act: Callable[[EngineCore], Any]) -> Any:
        """What the engine cores agree on. Raises CoresDiffer; before 0.32 the first core's answer is taken."""
        results = await self.all_cores(name, act)
        if self.traits.asks_all_cores and any(result != results[0] for result in results):
            raise CoresDiffer(name, results)
        return results[0]

    def _told(self, name: str) -> Sequence[EngineCore]:
        stuck = self.faults.has("pause", "stuck") if name.startswith("pause") else None
        return [core for index, core in enumerate(self.cores) if stuck is None or index != stuck.amount]

    async def _answered(self, call: Any) -> Any:
        """The result of a call to a core, or EngineDead once the core has ended."""
        answer = asyncio.shield(asyncio.wrap_future(call))
        while not (await asyncio.wait([answer], timeout=_POLL_S))[0]:
            if self.requests.dead:
                answer.cancel()
                raise EngineDead()
        return answer.result()

    def crashed(self, reason: str) -> None:
        """Ends the engine cores, fails every request, and has the server exit some time later. /health is 503 at once.

        Source: vllm 0.32.0, entrypoints/launchers/launcher.py: a watchdog looks every 5 s. Observed: gone after 7.5 s.
        """
        self.death.note(reason)
        self.kill_ranks()
        self.on_loop(self._die)

    def _die(self) -> None:
        if self.requests.dead:
            return
        self.requests.dead = True
        self.requests.fail_all(EngineDead())
        asyncio.get_running_loop().call_later(self.options.death_delay_s, self.exit_requested.set)

    def _rank_ended(self, reason: str) -> None:
        if self.options.fault_tolerance and not self.requests.dead:
            self.cores[0].worker_ended(reason)
        else:
            super()._rank_ended(reason)

    def status_of_cores(self) -> list[dict[str, Any]]:
        """The health of each engine core. Source: vllm 0.32.0, v1/engine/core_client.py get_status."""
        dead = {"status": "dead"} if self.requests.dead else None
        return [{"id": index, **(dead or core.health)} for index, core in enumerate(self.cores)]

    async def drained(self) -> None:
        """Returns when requests have ended: all are aborted at once, or after the shutdown timeout.

        Observed: without a timeout clients get the finish reason abort, also while paused; with one, requests in
        flight run to their end and new ones get 500. Source: vllm 0.32.0, v1/engine/core.py _handle_shutdown.
        """
        if self.requests.dead:
            return
        timeout_s = self.options.shutdown_timeout_s or 0.0
        self.requests.exiting = timeout_s > 0
        await self._until(lambda: not any(core.has_work() for core in self.cores), timeout_s)
        self.requests.abort_all()
        await self._until(lambda: not self.requests.rid_to_state, _ABORT_GRACE_S)

    async def _until(self, done: Callable[[], bool], timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while not done() and not self.requests.dead and time.monotonic() < end:  # noqa: ASYNC110 - threads end it
            await asyncio.sleep(_POLL_S)

    def config(self) -> dict[str, Any]:
        """The parts of the configuration that a driver reads. Source: vllm 0.32.0, config/vllm.py."""
        options = self.options
        saver = options.memory_saver or self.faults.has("server_info", "saver") is not None
        return {
            "instance_id": self.instance_id,
            "model_config": {
                "model": self.model_path,
                "served_model_name": self.model_path,
                "dtype": "float32",
                "max_model_len": options.context_length,
                "enable_sleep_mode": saver,
                "enable_cumem_allocator": saver,
            },
            "cache_config": {"block_size": 16, "kv_cache_memory_bytes": options.kv_mib << 20},
            "scheduler_config": {
                "max_num_seqs": options.max_running_requests,
                "max_num_queued_reqs": options.max_num_queued_reqs,
            },
            "parallel_config": {
                "pipeline_parallel_size": options.ranks,
                "tensor_parallel_size": 1,
                "data_parallel_size": len(self.cores),
                "data_parallel_external_lb": options.fault_tolerance,
                "enable_fault_tolerance": options.fault_tolerance,
                "world_size": options.ranks,
                "world_size_across_dp": options.ranks * len(self.cores),
            },
            "device_config": {"device": "cpu"},  # its memory is the host's, where a probe looks for it
            "weight_transfer_config": {"backend": "safetensors"} if options.weight_transfer else None,
        }


def _bound(act: Callable[[EngineCore], Any], core: EngineCore) -> Callable[[], Any]:
    return lambda: act(core)
