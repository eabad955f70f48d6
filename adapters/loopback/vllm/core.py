"""One engine core: the thread that steps the batch, pauses it, and puts its memory to sleep.

A pause closes the scheduler to waiting requests (NEW: after `abort` and `wait`) or to all (ALL: after `keep`). It is
complete when the core has no work, which is not the same as having no requests: under ALL nothing is work, and under
NEW only what runs. Source: vllm 0.32.0, v1/engine/core.py and v1/core/sched/scheduler.py; observed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum
from typing import Any

from lifecycle.core.units import MIB

from ..batch import Batch
from ..faults import FaultHook
from ..options import EngineOptions
from ..pipeline import Pipeline, RankEnded, RankFailed
from ..scheduler_loop import IDLE_WAIT_S, SchedulerLoop, answer
from ..sequence import FinishReason, GenerateRequest, Output
from ..sequence import Sequence as Row
from ..shape import PAGE_TOKENS, ModelShape, kv_capacity
from ..tag_memory import TagMemory
from .errors import CallFailed
from .sleeping_tags import SleepingTags
from .versions import Traits
from .weights import Weights

ABORTED: FinishReason = {"type": "abort"}
REJECTED: FinishReason = {"type": "error", "retryable": True}
_MODES = ("abort", "wait", "keep")
_IDLE_POLL_S = 0.02  # for releases that an injected fault delays


class Pause(Enum):
    """Who is scheduled. Source: vllm 0.32.0, v1/core/sched/interface.py."""

    UNPAUSED = 0
    NEW = 1  # what runs
    ALL = 2  # nobody


@dataclass(frozen=True, slots=True)
class Gauges:
    """The counts of the last step. Without a step they stay, so that under `keep` they say that requests run."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    preemptions: int = 0
    generated: int = 0
    prefilled: int = 0
    cache_queries: int = 0
    cache_hits: int = 0


class EngineCore(SchedulerLoop):
    """Calls come by `call`; an exception in one is answered, and the core goes on. One in a step ends it."""

    def __init__(
        self,
        options: EngineOptions,
        pipeline: Pipeline,
        faults: FaultHook,
        traits: Traits,
        emit: Callable[[Sequence[Output]], None],
        crashed: Callable[[str], None],
        model_path: str,
    ) -> None:
        super().__init__(crashed)
        self.capacity = kv_capacity(options.kv_mib)
        self.gauges = Gauges()
        self._options = options
        self._traits = traits
        self._faults = faults
        self._emit = emit
        self._batch = Batch(self.capacity // PAGE_TOKENS, options.max_running_requests, pipeline.forward, emit)
        sizes = {"weights": options.weights_mib * MIB, "kv_cache": options.kv_mib * MIB}
        memory = TagMemory(pipeline, sizes, faults) if options.memory_saver else None
        self._tags = SleepingTags(memory, sleeps_half_awake=traits.sleeps_half_awake, can_discard=not options.cpu_like)
        self.weights = Weights(pipeline, ModelShape.filling(options.weights_mib), faults, model_path, options)
        self._pause = Pause.UNPAUSED
        self._rejects = False
        self._unflushed = False  # requests were finished from outside, of which the ranks learn by one more step
        self._when_idle: list[Callable[[], None]] = []
        self._stopped = threading.Event()
        #: What its client says of it, where faults are told: `/fault_tolerance/status`.
        self.health: dict[str, str] = {"status": "healthy"}

    # Messages from the front end, sent on any thread.

    def submit(self, request: GenerateRequest) -> None:
        """Puts the request into the waiting queue, or rejects it."""
        self._inbox.put(lambda: self._receive(request))

    def finish(self, rids: Collection[str] | None) -> None:
        """Aborts these requests, or all."""
        self._inbox.put(lambda: self._finish(rids))

    def call(self, name: str, act: Callable[[], Any]) -> Future[Any]:
        """The result of `act` on the core's thread, or of the future that it returns. Raises CallFailed."""
        reply: Future[Any] = Future()
        self._inbox.put(lambda: _invoke(name, act, reply))
        return reply

    def worker_ended(self, reason: str) -> None:
        """Ends the step that is under way, or the next one: a process of a rank is gone."""

        def fails() -> None:
            raise RankEnded(reason)

        self._inbox.put(fails)

    def stop(self) -> None:
        """Ends the loop, also where it waits for a repair."""
        self._stopped.set()
        super().stop()

    # Everything below runs on the core's thread. What `call` may call is public.

    def pause_generation(self, mode: str, clear_cache: bool) -> Future[None] | None:
        """`pause`; from 0.33 on, new requests are rejected after an abort or a wait, until resumed."""
        if self._faults.has("pause", "mode"):
            self._pause = Pause.NEW
            return None
        paused = self.pause(mode, clear_cache)
        self._rejects = self._traits.rejects_while_paused and mode != "keep"
        return paused

    def pause(self, mode: str, clear_cache: bool) -> Future[None] | None:
        """Pauses. The future, where there is one, has its result when the core is next without work."""
        if mode not in _MODES:
            raise ValueError(f"Invalid pause mode: {mode}")
        if mode == "abort":
            self._finish(None)
        self._pause = Pause.ALL if mode == "keep" else Pause.NEW
        if not self.has_work():
            self._finish_pause(clear_cache)
            return None
        paused: Future[None] = Future()

        def idle() -> None:
            self._finish_pause(clear_cache)
            paused.set_result(None)

        self._when_idle.append(idle)
        return paused

    def resume(self) -> None:
        """Schedules every request again, whether or not memory sleeps."""
        self._pause = Pause.UNPAUSED
        self._rejects = False

    def is_paused(self) -> bool:
        """Whether the scheduler is paused, also while it still drains."""
        return self._pause is not Pause.UNPAUSED

    def is_sleeping(self) -> bool:
        """Whether the scheduler is paused or a tag sleeps."""
        return self.is_paused() or bool(self._tags.asleep)

    def sleep(self, level: int, mode: str) -> Future[None] | None:
        """Pauses, then puts the memory to sleep once the pause is complete: also where it was resumed meanwhile."""
        paused = self.pause(mode, level >= 1)
        if level < 1:
            return paused
        if paused is None:
            self._tags.sleep(level)
            return None
        asleep: Future[None] = Future()

        def complete(_: Future[None]) -> None:
            self._tags.sleep(level)
            asleep.set_result(None)

        paused.add_done_callback(complete)
        return asleep

    def wake_up(self, tags: Sequence[str] | None) -> bool:
        """Wakes the tags, or all, and resumes where nothing sleeps any more. Returns whether nothing does."""
        wanted = None if tags is None else [tag for tag in tags if tag != "scheduling"]
        if wanted is None or wanted:
            self._tags.wake_up(wanted)
        if not self._tags.asleep:
            self.resume()
        return not self._tags.asleep

    def release_kv_cache_memory(self) -> None:
        """Frees the KV cache alone. Kept requests are computed again after a wake."""
        if not self.is_paused() or self.has_work():
            raise RuntimeError("release_kv_cache_memory() requires a completed pause first")
        if self._tags.asleep:
            raise RuntimeError("release_kv_cache_memory() requires all executor memory to be resident")
        self.reset_prefix_cache(reset_running_requests=True)
        self._tags.discard("kv_cache")

    def reset_prefix_cache(self, *, reset_running_requests: bool) -> bool:
        """Empties the prefix cache. False, with no effect, where a request holds pages and may not be preempted."""
        if reset_running_requests:
            self._batch.retract_all(first=True)
        if self._batch.running:
            return False
        self._batch.cache.clear()
        return True

    def has_work(self) -> bool:
        """Whether there is anything to step. It is no sign that there are no requests."""
        if self._unflushed:
            return True
        if self._pause is Pause.ALL:
            return False
        return not self._batch.idle(ignore_waiting=self._pause is Pause.NEW)

    def _pass(self) -> None:
        try:
            self._work()
        except Exception as error:
            if not self._options.fault_tolerance:
                raise
            self._await_repair(error)

    def _await_repair(self, error: Exception) -> None:
        """Aborts every request and handles no message any more, until it gives up. Nothing repairs it here.

        Source: vllm 0.32.0, v1/fault_tolerance/engine_core_sentinel.py; read.
        """
        self._batch.finish(None, ABORTED)
        broken = {"status": "unhealthy", "fault_info": type(error).__name__}
        self.health = {"status": "dead"} if isinstance(error, RankEnded) else broken
        if not self._stopped.wait(self._options.recovery_timeout_s):
            raise error

    def _work(self) -> None:
        while self._when_idle and not self.has_work():
            self._when_idle.pop()()
        self._ingest()
        self._tags.free_late()
        if self.has_work():
            self._step()

    def _inbox_timeout_s(self) -> float:
        if self.has_work():
            return 0.0
        return _IDLE_POLL_S if self._tags.asleep else IDLE_WAIT_S

    def _step(self) -> None:
        self._unflushed = False
        worked = self._pause is not Pause.ALL and self._batch.step(admit=self._pause is Pause.UNPAUSED)
        self.gauges = self._counted()
        if worked and self._options.step_delay_s:
            time.sleep(self._options.step_delay_s)

    def _counted(self) -> Gauges:
        batch = self._batch
        usage = batch.pool.used / batch.pool.pages
        counts = (batch.preemptions, batch.generated, batch.prefilled, batch.cache_queries, batch.cache_hits)
        return Gauges(len(batch.running), len(batch.waiting), usage, *counts)

    def _receive(self, request: GenerateRequest) -> None:
        if self._rejects:
            self._emit([Output(request.rid, (), REJECTED)])
        else:
            self._batch.add(Row.of(request))

    def _finish(self, rids: Collection[str] | None) -> None:
        self._unflushed |= self._batch.finish(rids, ABORTED)

    def _finish_pause(self, clear_cache: bool) -> None:
        # Every mode clears, also keep, of which the documentation says that it ignores clear_cache.
        if clear_cache:
            self.reset_prefix_cache(reset_running_requests=True)


def _invoke(name: str, act: Callable[[], Any], reply: Future[Any]) -> None:
    try:
        result = act()
    except RankFailed:
        raise  # a rank's process has ended, and the core with it
    except Exception as error:
        if reply.set_running_or_notify_cancel():
            reply.set_exception(CallFailed(name, error))
        return
    if isinstance(result, Future):
        result.add_done_callback(lambda done: _invoke(name, done.result, reply))
    else:
        answer(reply, result)
