"""The SGLang engine: its scheduler, its admission gate, and the values that its status endpoints return."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Sequence
from enum import Enum
from typing import Any

from lifecycle.core.units import GIB, MIB

from ..engine import Engine, own_options
from ..options import EngineOptions
from ..pipeline import Pipeline
from .scheduler import Scheduler
from .tokenizer_gate import TokenizerGate
from .versions import TRAITS

_GRAPH_PHASES = ("prefill", "decode", "target_verify", "draft_prefill", "draft_decode", "draft_extend")
_DRAIN_POLL_S = 0.05
_SHUTDOWN_TIMEOUT_S = 3.0


class ServerStatus(Enum):
    """The result of the last /health. Source: sglang 0.5.23, managers/tokenizer_manager.py."""

    UP = "Up"
    UNHEALTHY = "UnHealthy"


class SGLangEngine(Engine):
    """Everything behind SGLang's HTTP API."""

    def __init__(self, options: EngineOptions, pipelines: Sequence[Pipeline]) -> None:
        began = time.monotonic()
        super().__init__(options, pipelines)
        self.traits = TRAITS[options.dialect.release]
        self.scheduler = Scheduler(options, pipelines[0], self.faults, self.emit, self.crashed)
        self.gate = self.requests = TokenizerGate(self.scheduler, abort_poll_s=options.abort_poll_s)
        self.status = ServerStatus.UP
        self.tokenizer_path = self.launch_path = self.model_path
        self.weight_version = self.launch_version = "default"
        self.load_format = "auto"
        self.startup_time = {"load_weight": self.load_s, "kv_cache_allocation": pipelines[0].allocation_s}
        self.startup_time["scheduler_e2e"] = time.monotonic() - began  # like the seed, different at every start
        self.random_seed = random.SystemRandom().randrange(1 << 30)

    @property
    def schedulers(self) -> Sequence[Scheduler]:
        return (self.scheduler,)

    def crashed(self, reason: str) -> None:
        """Schedules the death of the whole process tree."""
        self.death.schedule(reason)

    async def drained(self) -> None:
        """Returns when no request is left, or after the shutdown timeout.

        Source: sglang 0.5.23, measured: after SIGTERM a paused server with held or retracted requests never exits; an
        UnHealthy server exits at once. Here only the second is so: while paused, requests do not end.
        """
        timeout_s = self.options.shutdown_timeout_s
        end = time.monotonic() + (_SHUTDOWN_TIMEOUT_S if timeout_s is None else timeout_s)
        while self.gate.rid_to_state and self.status is ServerStatus.UP and time.monotonic() < end:
            print(f"Gracefully exiting... Remaining number of requests {len(self.gate.rid_to_state)}", file=sys.stderr)
            await asyncio.sleep(_DRAIN_POLL_S)

    def memory_usage(self) -> dict[str, Any]:
        """The sizes chosen at the start, a rank's mean share in GiB. A release does not change them."""
        sizes_mib = (self.faults.reported_weights_mib(self.options.weights_mib), self.options.kv_mib)
        weight, kv = (round(mib * MIB / GIB / self.options.ranks, 3) for mib in sizes_mib)
        return {
            "weight": weight,
            "kvcache": kv,
            "token_capacity": self.scheduler.capacity,
            "token_capacity_swa": None,
            "graph": dict.fromkeys(_GRAPH_PHASES, 0.0),
        }

    def resolved_arguments(self) -> dict[str, Any]:
        """The options under SGLang's names, then all options under this engine's own.

        What was loaded later does not show. Source: sglang 0.5.23, measured; until 0.5.15 it does.
        """
        options, of_launch = self.options, self.traits.info_is_of_launch
        path, version = self.launch_path, self.launch_version
        return {
            "model_path": path if of_launch else self.model_path,
            "tokenizer_path": self.tokenizer_path,
            "served_model_name": path,
            "load_format": self.load_format,
            "host": options.host,
            "port": options.port,
            "device": "cpu",
            "dtype": "float32",
            "tp_size": 1,
            "pp_size": options.ranks,
            "dp_size": 1,
            "tokenizer_worker_num": 1,
            "enable_memory_saver": options.memory_saver or self.faults.has("server_info", "saver") is not None,
            "enable_weights_cpu_backup": options.weights_backup,
            "enable_metrics": options.enable_metrics,
            "disaggregation_mode": options.disaggregation_mode,
            "context_length": options.context_length,
            "max_running_requests": options.max_running_requests,
            "random_seed": self.random_seed,
            "weight_version": version if of_launch else self.weight_version,
            **({"startup_time": self.startup_time} if self.traits.tells_start else {}),
            "served_by": "loopback",
            "loopback": own_options(options),
        }
