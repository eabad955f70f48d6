"""The scheduler: one thread that runs the ranks and the batch, and handles messages in the order in which they came.

An exception in it ends the engine, as in SGLang. That is why a wrong call is fatal. Source: sglang 0.5.23, measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from lifecycle.core.units import MIB

from ..batch import Batch
from ..faults import FaultHook
from ..options import EngineOptions
from ..pipeline import Pipeline
from ..scheduler_loop import IDLE_WAIT_S, SchedulerLoop, answer
from ..sequence import HEALTH_PREFIX, GenerateRequest, Output
from ..sequence import Sequence as Row
from ..shape import PAGE_TOKENS, ModelShape, kv_capacity
from ..tag_memory import TagMemory
from .loads import Publisher
from .occupation import MemoryOccupation
from .versions import TRAITS
from .weight_updater import WeightUpdater

_PAUSED_WAIT_S = 0.02


@dataclass(frozen=True, slots=True)
class _PendingFlush:
    deadline: float
    reply: Future[str | None]


class Scheduler(SchedulerLoop):
    """SGLang's scheduler. An idle engine's loads are at most IDLE_WAIT_S old."""

    def __init__(
        self,
        options: EngineOptions,
        pipeline: Pipeline,
        faults: FaultHook,
        emit: Callable[[Sequence[Output]], None],
        crashed: Callable[[str], None],
    ) -> None:
        super().__init__(crashed)
        self.capacity = kv_capacity(options.kv_mib)
        self.publisher = Publisher()
        self._options = options
        self._traits = TRAITS[options.dialect.release]
        self._emit = emit
        self._batch = Batch(self.capacity // PAGE_TOKENS, options.max_running_requests, pipeline.forward, emit)
        shape = ModelShape.filling(options.weights_mib)
        self.weights = WeightUpdater(pipeline, shape, self._flush_if_idle, self.relabel, sessions=self._traits.sessions)
        sizes = {"weights": options.weights_mib * MIB, "kv_cache": options.kv_mib * MIB}
        self._memory = TagMemory(pipeline, sizes, faults)
        self._occupation = MemoryOccupation(self._memory, self._flush_if_idle)
        self._pipeline = pipeline
        self._flushes: list[_PendingFlush] = []
        self._paused = False
        self._paused_at = 0.0

    # Messages from the front end, sent on any thread. The inbox is one FIFO, so that their order is kept.

    def submit(self, request: GenerateRequest) -> None:
        """Puts the request into the waiting queue."""
        self._inbox.put(lambda: self._receive(request))

    def abort(self, rid: str, *, everything: bool = False) -> None:
        """Aborts the requests whose id starts with `rid`."""
        self._inbox.put(lambda: self._batch.abort(rid, everything=everything))

    def pause(self, mode: str) -> None:
        """Pauses the loop, which then handles messages only. There is no acknowledgement."""
        self._inbox.put(lambda: self._pause(mode))

    def unpause(self) -> None:
        """Lets the loop run steps again."""
        self._inbox.put(self._unpause)

    def flush(self, timeout_s: float) -> Future[str | None]:
        """Empties the prefix cache; the result is None, or the reason why it was not emptied."""
        reply: Future[str | None] = Future()
        self._inbox.put(lambda: self._flush(timeout_s, reply))
        return reply

    def release(self, tags: Sequence[str]) -> Future[None]:
        """Releases the tags' memory. An engine that is not idle is ended by it."""
        return self.ask(lambda: self._release(tags))

    def resume(self, tags: Sequence[str]) -> Future[None]:
        """Makes the tags' memory resident."""
        return self.ask(lambda: self._occupation.resume(tags))

    def checksums(self) -> Future[list[dict[str, str]]]:
        """The checksums of each rank's tensors, by name."""
        return self.ask(lambda: self._pipeline.collective_rpc("checksums"))

    def reset_tensors(self) -> Future[list[None]]:
        """Overwrites the weights on every rank."""
        return self.ask(lambda: self._pipeline.collective_rpc("reset_tensors"))

    # Everything below runs on the scheduler's thread.

    def relabel(self, version: str | None) -> None:
        """The tokens generated from here on are of weights of this version; None leaves the label as it is."""
        self._batch.relabel(version)

    def publish(self) -> None:
        """Renews the load counts."""
        self.publisher.publish(self._batch, PAGE_TOKENS)

    def _pass(self) -> None:
        """One pass of the loop: messages, then a step unless paused."""
        self._ingest()
        self._answer_due_flushes()
        self._memory.free_late()
        if self._paused:
            self._check_watchdog()
            return
        began, rows = time.monotonic(), len(self._batch.running)
        worked = self._batch.step()
        if rows:
            self.publisher.stepped(rows, time.monotonic() - began)
        self.publish()
        if worked and self._options.step_delay_s:
            time.sleep(self._options.step_delay_s)

    def _inbox_timeout_s(self) -> float:
        if self._paused:
            return _PAUSED_WAIT_S
        if self._flushes:
            return 0.001
        return 0.0 if not self._batch.idle(ignore_waiting=False) else IDLE_WAIT_S

    def _check_watchdog(self) -> None:
        # Source: sglang 0.5.23, utils/watchdog.py: the watchdog takes a batch frozen in place for a hung forward pass.
        if self._batch.running and time.monotonic() - self._paused_at > self._options.watchdog_timeout_s:
            raise TimeoutError("Scheduler watchdog timeout: the batch has stood still")

    def _receive(self, request: GenerateRequest) -> None:
        if request.rid.startswith(HEALTH_PREFIX) and not self._batch.idle(ignore_waiting=False):
            # While other requests run, a health check is answered by their tokens and is not run itself.
            self._emit([Output(request.rid, (), {"type": "length", "length": 0})])
            return
        self._batch.add(Row.of(request))

    def _pause(self, mode: str) -> None:
        self._paused, self._paused_at = True, time.monotonic()
        if mode == "retract":
            self._batch.retract_all()
            self.publisher.publish_counts(self._batch, PAGE_TOKENS)

    def _unpause(self) -> None:
        self._paused = False

    def _release(self, tags: Sequence[str]) -> None:
        assert self._idle(), "release_memory_occupation should be called only when server is idle."
        self._occupation.release(tags)

    def _idle(self) -> bool:
        return self._batch.idle(ignore_waiting=self._paused and self._traits.ignores_queue)

    def _flush_if_idle(self) -> bool:
        if not self._idle():
            return False
        self._batch.cache.clear()
        return True

    def _flush(self, timeout_s: float, reply: Future[str | None]) -> None:
        if timeout_s:
            self._flushes.append(_PendingFlush(time.monotonic() + timeout_s, reply))
        else:
            answer(reply, None if self._flush_if_idle() else "Flush cache failed.\n")

    def _answer_due_flushes(self) -> None:
        """Answers the waiting flushes once no request runs or waits, and those whose deadline has passed.

        Source: sglang 0.5.23, scheduler_components/flush_wrapper.py: a flush with a timeout counts the waiting queue.
        """
        if not self._flushes:
            return
        if self._batch.idle(ignore_waiting=False):
            self._batch.cache.clear()
            self._answer_flushes(lambda _: True, None)
        now = time.monotonic()
        self._answer_flushes(lambda pending: pending.deadline <= now, "Timed out waiting for idle state.")

    def _answer_flushes(self, chosen: Callable[[_PendingFlush], bool], message: str | None) -> None:
        for pending in [each for each in self._flushes if chosen(each)]:
            self._flushes.remove(pending)
            answer(pending.reply, message)
