"""One running engine of any dialect: its ranks, its checkpoint, its faults and its death."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .checkpoint import cached_weights
from .death import Death
from .faults import FaultHook
from .http_counts import HttpCounts
from .options import EngineOptions
from .pipeline import Pipeline
from .request_states import RequestStates
from .scheduler_loop import SchedulerLoop
from .sequence import Output
from .shape import LAYERS


class BadWeights(Exception):
    """The checkpoint with which the engine was to start is invalid."""


class Engine(ABC):
    """Everything behind the HTTP API. It is built before the event loop runs; `start` connects it to the loop.

    A dialect adds its schedulers, one for each of `pipelines`, and `requests`, its front end.
    """

    requests: RequestStates

    def __init__(self, options: EngineOptions, pipelines: Sequence[Pipeline]) -> None:
        began = time.monotonic()
        self.options = options
        self.faults = FaultHook(options.fault)
        self.pipelines = pipelines
        self.death = Death(pipelines, options.death_delay_s)
        self.model_path = str(options.weights or cached_weights(seed=options.seed, weights_mib=options.weights_mib))
        self._load()
        self.load_s = time.monotonic() - began
        self.exiting = False
        self.exit_requested = asyncio.Event()
        self.started_at = time.time()
        self.http = HttpCounts()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    @abstractmethod
    def schedulers(self) -> Sequence[SchedulerLoop]: ...

    @abstractmethod
    async def drained(self) -> None:
        """Returns once the server may exit, after a signal has asked for that."""

    @abstractmethod
    def crashed(self, reason: str) -> None:
        """A scheduler or a rank has failed. Called on any thread."""

    def _load(self) -> None:
        loaded = [reason for each in self.pipelines for reason in each.collective_rpc("load", self.model_path)]
        refused = [reason for reason in loaded if reason]
        if refused:
            self.kill_ranks()
            raise BadWeights(refused[0])

    def start(self) -> None:
        """Starts the schedulers, which deliver their outputs to the running event loop."""
        self._loop = asyncio.get_running_loop()
        for pipeline in self.pipelines:
            pipeline.watch(self._rank_ended)
        if self.options.die_with_stdin:
            self.death.watch_stdin()
        for scheduler in self.schedulers:
            scheduler.start()

    def _rank_ended(self, reason: str) -> None:
        if not self.death.exiting:
            self.crashed(reason)

    def stop(self) -> None:
        """Stops the schedulers and kills the ranks."""
        self.death.exiting = True
        for scheduler in self.schedulers:
            scheduler.stop()
        self.kill_ranks()

    def kill_ranks(self) -> None:
        """Sends SIGKILL to every rank that is a process of its own."""
        for pipeline in self.pipelines:
            pipeline.kill()

    def emit(self, outputs: Sequence[Output]) -> None:
        """Delivers outputs to the front end. Called on a scheduler's thread."""
        if outputs:
            self.on_loop(lambda: self.requests.deliver(outputs))

    def on_loop(self, act: Any) -> None:
        """Runs `act` on the event loop, soon. Called on any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed, so no request waits
                self._loop.call_soon_threadsafe(act)

    def end_rank(self, index: int) -> None:
        """Sends SIGKILL to the process of this rank, of all data-parallel engines together. Raises IndexError."""
        pids = [pid for each in self.pipelines for pid in each.pids]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[index], signal.SIGKILL)

    def announcement(self, url: str) -> dict[str, Any]:
        """The JSON line that the command prints once it accepts requests."""
        return {
            "url": url,
            "pid": os.getpid(),
            "rank_pids": [pid for each in self.pipelines for pid in each.pids],
            "dialect": str(self.options.dialect),
            "ranks": self.options.ranks,
            "weights": self.model_path,
            "weights_mib": self.options.weights_mib,
            "kv_mib": self.options.kv_mib,
            "seed": self.options.seed,
        }


def own_options(options: EngineOptions) -> dict[str, Any]:
    """The options under this engine's own names, without the keys."""
    secret = {"api_key", "admin_api_key"}
    chosen = {name: value for name, value in asdict(options).items() if name not in secret}
    return chosen | {"dialect": str(options.dialect), "layers": LAYERS}
