"""The tokenspeed engine: its scheduler, its front end, and what its status endpoints return."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from ..engine import Engine
from ..options import EngineOptions
from ..pipeline import Pipeline
from .front_end import EngineGone, FrontEnd
from .scheduler import Scheduler

_DRAIN_POLL_S = 0.02


class TokenspeedEngine(Engine):
    """Everything behind the control server."""

    requests: FrontEnd

    def __init__(self, options: EngineOptions, pipelines: Sequence[Pipeline]) -> None:
        super().__init__(options, pipelines)
        self.scheduler = Scheduler(options, pipelines[0], self.faults, self.emit, self.crashed)
        self.requests = FrontEnd(self.scheduler)
        self.weight_version = "default"

    @property
    def schedulers(self) -> Sequence[Scheduler]:
        return (self.scheduler,)

    def crashed(self, reason: str) -> None:
        """Nothing reaches the scheduler any more. The control server answers 503 until it exits, some time later."""
        self.death.note(reason)
        self.kill_ranks()
        self.on_loop(self._die)

    def _die(self) -> None:
        if self.requests.dead.is_set():
            return
        self.requests.dead.set()
        self.requests.fail_all(EngineGone())
        asyncio.get_running_loop().call_later(self.options.death_delay_s, self.exit_requested.set)

    async def drained(self) -> None:
        """Returns when no request is left, or after the shutdown timeout.

        Source: runtime/engine/async_llm.py, `sigterm_watchdog`: a real one waits for as long as it takes.
        """
        end = time.monotonic() + (self.options.shutdown_timeout_s or 0.0)
        while (  # noqa: ASYNC110 - clients end it
            self.requests.rid_to_state and not self.requests.dead.is_set() and time.monotonic() < end
        ):
            await asyncio.sleep(_DRAIN_POLL_S)

    def server_info(self) -> dict[str, Any]:
        """What a driver reads of `GetServerInfo`, as JSON: numbers of the arguments are floats, and zeros are left out.

        Source: tokenspeed-smg-grpc-servicer 0.9.1, tokenspeed/servicer.py; runtime/entrypoints/control_server.py.
        """
        arguments = self._arguments()
        scheduler = {"max_total_num_tokens": float(self.scheduler.capacity)}
        report: dict[str, Any] = {**arguments, "scheduler_info": scheduler}
        count = len(self.requests.rid_to_state)
        report |= {"active_requests": count} if count else {}
        return report | {
            "uptime_seconds": time.time() - self.started_at,
            "max_total_num_tokens": self.scheduler.capacity,
            "tokenspeed_version": self.options.dialect.release,
            "start_time": datetime.fromtimestamp(int(self.started_at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "server_args": arguments,
        }

    def _arguments(self) -> dict[str, Any]:
        options = self.options
        saver = options.memory_saver or self.faults.has("server_info", "saver") is not None
        return {
            "model": self.model_path,
            "served_model_name": self.model_path,
            "device": "cpu",  # its memory is the host's, where a probe looks for it
            "dtype": "float32",
            "world_size": float(options.ranks),
            "attn_tp_size": None,
            "data_parallel_size": None,
            "pipeline_parallel_size": float(options.ranks),
            "enable_memory_saver": saver,
            "enable_prefix_caching": True,
            "enable_eplb": options.rebalance_s is not None,
            "weight_version": self.weight_version,
            "max_num_seqs": float(options.max_running_requests),
            "rl.pause_modes": "wait,abort,keep",
            "rl.abort": "true",
            "rl.flush_cache": "true",
            "rl.sleep_wake": "true",
            "rl.reports_weight_version": "true",
            "rl.update_from": "distributed,mooncake",
        }
