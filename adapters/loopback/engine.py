"""One running engine: its ranks, its scheduler, its admission gate, and the values that its status endpoints return."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from typing import Any

from lifecycle.core.units import GIB, MIB

from .checkpoint import cached_weights
from .death import Death
from .faults import FaultHook
from .options import EngineOptions
from .pipeline import Pipeline
from .scheduler import Scheduler
from .sequence import Output
from .shape import LAYERS
from .tokenizer_gate import TokenizerGate

SGLANG_VERSION = "0.5.23"  # the version whose behaviour is reproduced
_GRAPH_PHASES = ("prefill", "decode", "target_verify", "draft_prefill", "draft_decode", "draft_extend")


class ServerStatus(Enum):
    """The result of the last /health. Source: sglang 0.5.23, managers/tokenizer_manager.py."""

    UP = "Up"
    UNHEALTHY = "UnHealthy"


class BadWeights(Exception):
    """The checkpoint with which the engine was to start is invalid."""


class Engine:
    """Everything behind the HTTP API. It is built before the event loop runs; `start` connects it to the loop."""

    def __init__(self, options: EngineOptions, pipeline: Pipeline) -> None:
        began = time.monotonic()
        self.options = options
        self.faults = FaultHook(options.fault)
        self.pipeline = pipeline
        self.death = Death(self.pipeline, options.death_delay_s)
        self.model_path = str(options.weights or cached_weights(seed=options.seed, weights_mib=options.weights_mib))
        self.tokenizer_path = self.model_path
        self._load()
        loaded = time.monotonic()
        self.scheduler = Scheduler(options, self.pipeline, self.faults, self._emit, self.death.schedule)
        self.gate = TokenizerGate(self.scheduler, abort_poll_s=options.abort_poll_s)
        self.status = ServerStatus.UP
        self.exiting = False
        self.weight_version = "default"
        self.load_format = "auto"
        self.startup_time = {"load_weight": loaded - began, "kv_cache_allocation": pipeline.allocation_s}
        self.startup_time["scheduler_e2e"] = time.monotonic() - began  # like the seed, different at every start
        self.started_at = time.time()
        self.random_seed = random.SystemRandom().randrange(1 << 30)
        self.http_requests_active: dict[tuple[str, str], int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def _load(self) -> None:
        refused = [reason for reason in self.pipeline.collective_rpc("load", self.model_path) if reason]
        if refused:
            self.pipeline.kill()
            raise BadWeights(refused[0])

    def start(self) -> None:
        """Starts the scheduler, which delivers its outputs to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self.pipeline.watch(self.death.schedule)
        if self.options.die_with_stdin:
            self.death.watch_stdin()
        self.scheduler.start()

    def stop(self) -> None:
        """Stops the scheduler and kills the ranks."""
        self.death.exiting = True
        self.scheduler.stop()
        self.pipeline.kill()

    def _emit(self, outputs: Sequence[Output]) -> None:
        if outputs and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed, so no request waits
                self._loop.call_soon_threadsafe(self.gate.deliver, outputs)

    def announcement(self, url: str) -> dict[str, Any]:
        """The JSON line that the command prints once it accepts requests."""
        return {
            "url": url,
            "pid": os.getpid(),
            "rank_pids": self.pipeline.pids,
            "ranks": self.options.ranks,
            "weights": self.model_path,
            "weights_mib": self.options.weights_mib,
            "kv_mib": self.options.kv_mib,
            "seed": self.options.seed,
        }

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
        """The options under SGLang's names, then all options under this engine's own."""
        options = self.options
        return {
            "model_path": self.model_path,
            "tokenizer_path": self.tokenizer_path,
            "served_model_name": self.model_path,
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
            "weight_version": self.weight_version,
            "startup_time": self.startup_time,
            "served_by": "loopback",
            "loopback": _own_options(options),
        }


def _own_options(options: EngineOptions) -> dict[str, Any]:
    secret = {"api_key", "admin_api_key"}
    return {name: value for name, value in asdict(options).items() if name not in secret} | {"layers": LAYERS}
