"""The scheduler: one thread that owns the ranks and the batch, and takes messages in order.

An exception in it ends the engine. That is SGLang's behaviour, and what makes a wrong call fatal.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from .batch import Batch
from .faults import FaultHook
from .loads import Publisher
from .occupation import MemoryOccupation
from .options import EngineOptions
from .pipeline import Pipeline
from .sequence import HEALTH_PREFIX, GenerateRequest, Output
from .sequence import Sequence as Row
from .shape import KV_BYTES_PER_TOKEN, MIB, PAGE_TOKENS, ModelShape
from .weight_updater import WeightUpdater

Reply = TypeVar("Reply")

_IDLE_WAIT_S = 0.1  # how stale the loads of an idle engine may be
_PAUSED_WAIT_S = 0.02


@dataclass(frozen=True, slots=True)
class _PendingFlush:
    deadline: float
    reply: Future[str | None]


class Scheduler:
    """Serves until `stop`; `crashed` is called once, from its thread, when it fails."""

    def __init__(
        self,
        options: EngineOptions,
        pipeline: Pipeline,
        faults: FaultHook,
        emit: Callable[[Sequence[Output]], None],
        crashed: Callable[[str], None],
    ) -> None:
        self.capacity = options.kv_mib * MIB // KV_BYTES_PER_TOKEN // PAGE_TOKENS * PAGE_TOKENS  # tokens
        self.publisher = Publisher()
        self._options = options
        self._emit = emit
        self._crashed = crashed
        self._batch = Batch(self.capacity // PAGE_TOKENS, options.max_running_requests, pipeline.forward, emit)
        self.weights = WeightUpdater(pipeline, ModelShape.filling(options.weights_mib), self._flush_if_idle)
        sizes = {"weights": options.weights_mib * MIB, "kv_cache": options.kv_mib * MIB}
        self._occupation = MemoryOccupation(pipeline, sizes, self._flush_if_idle, faults)
        self._pipeline = pipeline
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._flushes: list[_PendingFlush] = []
        self._paused = False
        self._paused_at = 0.0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        """The loop runs."""
        self._thread.start()

    def stop(self) -> None:
        """The loop has ended, or will never."""
        self._inbox.put(self._stop)
        self._thread.join(1.0)

    # What the front end asks, on any thread. The inbox is one FIFO: an order given is an order kept.

    def ask(self, act: Callable[[], Reply]) -> Future[Reply]:
        """`act` runs on the scheduler's thread after all that was sent before; an exception in it is never answered."""
        reply: Future[Reply] = Future()
        self._inbox.put(lambda: _answer(reply, act()))
        return reply

    def submit(self, request: GenerateRequest) -> None:
        """The request is waiting."""
        self._inbox.put(lambda: self._receive(request))

    def abort(self, rid: str, *, everything: bool = False) -> None:
        """Requests whose id starts with `rid` are ending."""
        self._inbox.put(lambda: self._batch.abort(rid, everything=everything))

    def pause(self, mode: str) -> None:
        """The loop will take control messages only; nobody is told when."""
        self._inbox.put(lambda: self._pause(mode))

    def unpause(self) -> None:
        """The loop will step again."""
        self._inbox.put(self._unpause)

    def flush(self, timeout_s: float) -> Future[str | None]:
        """None once the prefix cache is empty, or why it is not."""
        reply: Future[str | None] = Future()
        self._inbox.put(lambda: self._flush(timeout_s, reply))
        return reply

    def release(self, tags: Sequence[str]) -> Future[None]:
        """Done once the tags' memory is given back. An engine that is not idle dies of it."""
        return self.ask(lambda: self._release(tags))

    def resume(self, tags: Sequence[str]) -> Future[None]:
        """Done once the tags' memory is resident."""
        return self.ask(lambda: self._occupation.resume(tags))

    def checksums(self) -> Future[list[dict[str, str]]]:
        """Each rank's tensors and their checksums."""
        return self.ask(lambda: self._pipeline.each("checksums"))

    def reset_tensors(self) -> Future[list[None]]:
        """No rank holds its weights."""
        return self.ask(lambda: self._pipeline.each("reset_tensors"))

    # What happens on its own thread.

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._pass()
        except BaseException as error:
            traceback.print_exc(file=sys.stderr)
            self._crashed(f"Scheduler hit an exception: {type(error).__name__}: {error}")

    def _pass(self) -> None:
        """One turn of the loop: messages first, then a step unless paused."""
        self._ingest()
        self._settle_flushes()
        self._occupation.free_late()
        if self._paused:
            self._watch()
            return
        began, rows = time.monotonic(), len(self._batch.running)
        worked = self._batch.step()
        if rows:
            self.publisher.stepped(rows, time.monotonic() - began)
        self.publisher.publish(self._batch, PAGE_TOKENS)
        if worked and self._options.step_delay_s:
            time.sleep(self._options.step_delay_s)

    def _ingest(self) -> None:
        try:
            self._inbox.get(timeout=self._patience())()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            return

    def _patience(self) -> float:
        if self._paused:
            return _PAUSED_WAIT_S
        if self._flushes:
            return 0.001
        return 0.0 if not self._batch.idle(ignore_waiting=False) else _IDLE_WAIT_S

    def _watch(self) -> None:
        # Source: sglang 0.5.23, utils/watchdog.py: a batch that was frozen in place looks like a hung forward pass.
        if self._batch.running and time.monotonic() - self._paused_at > self._options.watchdog_timeout_s:
            raise TimeoutError("Scheduler watchdog timeout: the batch has stood still")

    def _receive(self, request: GenerateRequest) -> None:
        if request.rid.startswith(HEALTH_PREFIX) and not self._batch.idle(ignore_waiting=False):
            self._emit([Output(request.rid, (), {"type": "length", "length": 0})])  # the others' tokens are the answer
            return
        self._batch.add(Row.of(request))

    def _pause(self, mode: str) -> None:
        self._paused, self._paused_at = True, time.monotonic()
        if mode == "retract":
            self._batch.retract_all()
            self.publisher.publish_counts(self._batch, PAGE_TOKENS)

    def _unpause(self) -> None:
        self._paused = False

    def _stop(self) -> None:
        self._stopping = True

    def _release(self, tags: Sequence[str]) -> None:
        assert self._batch.idle(ignore_waiting=self._paused), (
            "release_memory_occupation should be called only when server is idle."
        )
        self._occupation.release(tags)

    def _flush_if_idle(self) -> bool:
        if not self._batch.idle(ignore_waiting=self._paused):
            return False
        self._batch.cache.clear()
        return True

    def _flush(self, timeout_s: float, reply: Future[str | None]) -> None:
        if timeout_s:
            self._flushes.append(_PendingFlush(time.monotonic() + timeout_s, reply))
        else:
            _answer(reply, None if self._flush_if_idle() else "Flush cache failed.\n")

    def _settle_flushes(self) -> None:
        """Flushes that wait are answered: when all is idle, waiting requests included, or too late.

        Source: sglang 0.5.23, scheduler_components/flush_wrapper.py: the deferred flush counts the waiting queue.
        """
        if not self._flushes:
            return
        if self._batch.idle(ignore_waiting=False):
            self._batch.cache.clear()
            self._answer_flushes(lambda _: True, None)
        now = time.monotonic()
        self._answer_flushes(lambda pending: pending.deadline <= now, "Timed out waiting for idle state.")

    def _answer_flushes(self, chosen: Callable[[_PendingFlush], bool], answer: str | None) -> None:
        for pending in [each for each in self._flushes if chosen(each)]:
            self._flushes.remove(pending)
            _answer(pending.reply, answer)


def _answer(reply: Future[Reply], value: Reply) -> None:
    # The asker may have gone; what it asked for has happened all the same.
    if reply.set_running_or_notify_cancel():
        reply.set_result(value)
