"""One running engine: its ranks, scheduler and gate, and the facts that its status endpoints show."""

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

from .checkpoint import cached_weights
from .death import Death
from .faults import FaultHook
from .options import EngineOptions
from .pipeline import Pipeline
from .scheduler import Scheduler
from .sequence import Output
from .shape import LAYERS, MIB
from .tokenizer_gate import TokenizerGate

SGLANG_VERSION = "0.5.23"  # whose behaviour this is
_GIB = 1 << 30
_GRAPH_PHASES = ("prefill", "decode", "target_verify", "draft_prefill", "draft_decode", "draft_extend")


class ServerStatus(Enum):
    """What /health last found. Source: sglang 0.5.23, managers/tokenizer_manager.py."""

    UP = "Up"
    UNHEALTHY = "UnHealthy"


class BadWeights(Exception):
    """The checkpoint that the engine was to start with cannot be used."""


class Engine:
    """Everything behind the HTTP surface. Built before the event loop runs, connected to it by `start`."""

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
        self.scheduler = Scheduler(options, self.pipeline, self.faults, self._emit, self.death.sentence)
        self.gate = TokenizerGate(self.scheduler, abort_poll_s=options.abort_poll_s)
        self.status = ServerStatus.UP
        self.leaving = False
        self.weight_version = "default"
        self.load_format = "auto"
        self.startup_time = {"load_weight": loaded - began, "kv_cache_allocation": pipeline.allocation_s}
        self.startup_time["scheduler_e2e"] = time.monotonic() - began  # like the seed, another at every start
        self.started_at = time.time()
        self.random_seed = random.SystemRandom().randrange(1 << 30)
        self.http_requests_active: dict[tuple[str, str], int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def _load(self) -> None:
        refused = [reason for reason in self.pipeline.each("load", self.model_path) if reason]
        if refused:
            self.pipeline.kill()
            raise BadWeights(refused[0])

    def start(self) -> None:
        """The scheduler runs and answers to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self.pipeline.watch(self.death.sentence)
        if self.options.die_with_stdin:
            self.death.watch_stdin()
        self.scheduler.start()

    def stop(self) -> None:
        """The scheduler has stopped and no rank is left."""
        self.death.leaving = True
        self.scheduler.stop()
        self.pipeline.kill()

    def _emit(self, outputs: Sequence[Output]) -> None:
        if outputs and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self.gate.deliver, outputs)

    def announcement(self, url: str) -> dict[str, Any]:
        """What the command prints once it accepts requests."""
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
        """Static figures of the start, a rank's mean share; they do not change when memory is released."""
        sizes_mib = (self.options.weights_mib, self.options.kv_mib)
        weight, kv = (round(mib * MIB / _GIB / self.options.ranks, 3) for mib in sizes_mib)
        return {
            "weight": weight,
            "kvcache": kv,
            "token_capacity": self.scheduler.capacity,
            "token_capacity_swa": None,
            "graph": dict.fromkeys(_GRAPH_PHASES, 0.0),
        }

    def resolved_arguments(self) -> dict[str, Any]:
        """The arguments by SGLang's names, then this engine's own."""
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
