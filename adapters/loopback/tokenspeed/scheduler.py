"""The scheduler: one thread that steps the batch, keeps requests back while it is paused, and releases memory by tag.

What waits until no request is left (a pause, a release) waits alone: a second one is refused. A resume cuts it off.
Source: tokenspeed 0.1.1, runtime/engine/pause.py and memory_occupation.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from lifecycle.core.units import MIB

from ..batch import Batch
from ..faults import FaultHook
from ..options import EngineOptions
from ..pipeline import Pipeline
from ..scheduler_loop import IDLE_WAIT_S, SchedulerLoop, answer
from ..sequence import FinishReason, GenerateRequest, Output
from ..sequence import Sequence as Row
from ..shape import PAGE_TOKENS, kv_capacity
from ..tag_memory import TagMemory
from . import tags as tag_lists
from .tags import BadTags

_PAUSED_WAIT_S = 0.02
_ABORTED_BY_PAUSE: FinishReason = {"type": "abort", "message": "Aborted by pause", "err_type": "UnknownError"}
_ABORTED_BY_CLIENT: FinishReason = {"type": "abort", "message": "AbortReq from client", "err_type": "UnknownError"}
_BUSY_PAUSE = "a pause is already in progress"
_BUSY_RELEASE = "a pause or release is already in progress"
_RELEASED = "memory is released; call resume_memory_occupation to wake before resuming the scheduler"


class PauseState(IntEnum):
    """Who is scheduled: everybody; those that were there before; nobody."""

    UNPAUSED = 0
    PAUSED_NEW = 1
    PAUSED_ALL = 2


class Loads(NamedTuple):
    """What the scheduler published last. Held requests count as running; each waiting one counts twice."""

    running: int = 0
    waiting: int = 0
    pages: int = 0


@dataclass(frozen=True, slots=True)
class _Drain:
    """What is done once no request is left, and what is answered where a resume comes before."""

    on_drained: Callable[[], None]
    on_cancelled: Callable[[], None]


#: What a control call is answered with: an empty string where it was done, else why it was refused.
Answered = Future[str]


class Scheduler(SchedulerLoop):
    """tokenspeed's scheduler. Every call is answered; an exception ends the engine."""

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
        self.loads = Loads()
        self._options = options
        self._faults = faults
        self._pipeline = pipeline
        self._emit = emit
        self._batch = Batch(self.capacity // PAGE_TOKENS, options.max_running_requests, pipeline.forward, emit)
        sizes = {"weights": options.weights_mib * MIB, "kv_cache": options.kv_mib * MIB}
        self._memory = TagMemory(pipeline, sizes, faults)
        self._pause_state = PauseState.UNPAUSED
        self._frozen = False  # by a release, which only a restore of all that is released ends
        self._released: set[str] = set()
        self._drain: _Drain | None = None
        self._held: list[Row] = []
        self._rebalanced_at = 0.0

    # Messages from the front end, sent on any thread. The inbox is one FIFO, so that their order is kept.

    def submit(self, request: GenerateRequest) -> None:
        """Puts the request into the waiting queue, or keeps it back while paused."""
        self._inbox.put(lambda: self._receive(request))

    def abort(self, rid: str) -> None:
        """Aborts the request whose client left."""
        self._inbox.put(lambda: self._abort(rid))

    def pause(self, mode: str) -> Answered:
        """Pauses; by abort and wait it is answered once no request is left."""
        return self._call(lambda reply: self._pause(mode, reply))

    def resume(self) -> Answered:
        """Schedules every request again, unless memory is released."""
        return self._call(self._resume)

    def release(self, tags: object) -> Answered:
        """Releases tags once no request is left; None: all."""
        return self._call(lambda reply: self._release(tags, reply))

    def restore(self, tags: object) -> Answered:
        """Maps tags again, and resumes where nothing is released any more; None: those that are released."""
        return self._call(lambda reply: answer(reply, self._restore(tags)))

    def flush(self) -> Answered:
        """Empties the prefix cache where no request holds a page of it."""
        return self._call(lambda reply: answer(reply, self._flush()))

    def load(self, path: str, *, flush: bool, label: bool) -> Answered:
        """Loads weights in place; with `label` they are only said to be others (a fault)."""
        return self._call(lambda reply: answer(reply, self._load(path, flush=flush, label=label)))

    def rebalance(self) -> Answered:
        """Experts are moved from here on, for as long as was chosen at the start."""
        return self._call(lambda reply: answer(reply, self._rebalance()))

    def _call(self, act: Callable[[Answered], None]) -> Answered:
        reply: Answered = Future()
        self._inbox.put(lambda: act(reply))
        return reply

    # Everything below runs on the scheduler's thread.

    def _pass(self) -> None:
        self._ingest()
        self._memory.free_late()
        if self._pause_state is not PauseState.PAUSED_ALL and self._batch.step() and self._options.step_delay_s:
            time.sleep(self._options.step_delay_s)
        self._publish()
        self._finish_drain()

    def _inbox_timeout_s(self) -> float:
        if self._pause_state is PauseState.PAUSED_ALL:
            return _PAUSED_WAIT_S
        if not self._batch.idle(ignore_waiting=False):
            return 0.0
        return _PAUSED_WAIT_S if self._drain else IDLE_WAIT_S

    def _publish(self) -> None:
        batch = self._batch
        known = len(batch.running) + len(batch.waiting) + len(self._held)
        self.loads = Loads(known, len(batch.waiting), batch.pool.used)

    def _finish_drain(self) -> None:
        """Does what waited, once no request is left; a release also waits for what writes weights."""
        if self._drain is None or not self._batch.idle(ignore_waiting=False):
            return
        drain, self._drain = self._drain, None
        drain.on_drained()

    def _receive(self, request: GenerateRequest) -> None:
        row = Row.of(request)
        if self._pause_state is PauseState.UNPAUSED:
            self._batch.add(row)
        else:
            self._held.append(row)

    def _abort(self, rid: str) -> None:
        self._held = [row for row in self._held if row.rid != rid]
        self._batch.finish([rid], _ABORTED_BY_CLIENT)

    def _pause(self, mode: str, reply: Answered) -> None:
        if self._drain is not None:
            answer(reply, _BUSY_PAUSE)
            return
        if mode == "keep" or self._faults.has("pause", "mode"):
            self._pause_state = PauseState.PAUSED_ALL if mode == "keep" else PauseState.PAUSED_NEW
            answer(reply, "")
            return
        if mode == "abort":
            for row in self._held:  # they are ended when they would be scheduled
                row.to_abort = True
            self._batch.finish(None, _ABORTED_BY_PAUSE)
        self._drain_for(lambda: answer(reply, ""), lambda: answer(reply, "resumed before pause drained"))

    def _drain_for(self, on_drained: Callable[[], None], on_cancelled: Callable[[], None]) -> None:
        """Runs on what is there until it has ended. What an earlier pause froze goes on, also where that was a release.

        Source: pause.py, `request_drain` sets PAUSED_NEW whatever was before.
        """
        self._pause_state = PauseState.PAUSED_NEW
        self._drain = _Drain(on_drained, on_cancelled)

    def _resume(self, reply: Answered) -> None:
        if self._frozen:
            answer(reply, _RELEASED)
            return
        if self._drain is not None:
            drain, self._drain = self._drain, None
            drain.on_cancelled()
        self._unpause()
        answer(reply, "")

    def _unpause(self) -> None:
        self._pause_state, self._frozen = PauseState.UNPAUSED, False
        held, self._held = self._held, []
        for row in held:
            if row.to_abort:
                row.finish = _ABORTED_BY_PAUSE
                self._emit([row.snapshot(self._batch.version)])
            else:
                self._batch.add(row)

    def _release(self, wanted: object, reply: Answered) -> None:
        refused, tags = self._why_not_release(wanted)
        if refused:
            answer(reply, refused)
            return
        self._drain_for(lambda: self._free(tags, reply), lambda: answer(reply, "resumed before release drained"))

    def _why_not_release(self, wanted: object) -> tuple[str, list[str]]:
        if not self._options.memory_saver:
            return "memory saver not enabled (--enable-memory-saver)", []
        try:
            tags = tag_lists.ordered(wanted, all_of=tag_lists.VALID)
        except BadTags as bad:
            return str(bad), []
        already = [tag for tag in tags if tag in self._released]
        if already:
            return f"tags already released: {already!r}", []
        if self._drain is not None:
            return _BUSY_RELEASE, []
        if time.monotonic() < self._rebalanced_at + (self._options.rebalance_s or 0.0):
            why = "an expert rebalance is in progress (applying); retry the release once it has been applied"
            return f"cannot release memory: {why}", []
        return "", tags

    def _free(self, tags: list[str], reply: Answered) -> None:
        if "kv_cache" in tags:
            self._batch.cache.clear()
        self._memory.free(tags)
        self._released.update(tags)
        self._pause_state, self._frozen = PauseState.PAUSED_ALL, True
        answer(reply, "")

    def _restore(self, wanted: object) -> str:
        try:
            tags = tag_lists.ordered(wanted, all_of=[tag for tag in tag_lists.VALID if tag in self._released])
        except BadTags as bad:
            return str(bad)
        mapped = [tag for tag in tags if tag not in self._released]
        if mapped:
            return f"tags not released: {mapped!r}"
        if not tags and self._drain is not None:
            return ""
        self._memory.map(tags)
        self._released.difference_update(tags)
        if not self._released:
            self._unpause()
        return ""

    def _flush(self) -> str:
        if self._batch.running:
            return "not cleared"
        self._batch.cache.clear()
        return ""

    def _load(self, path: str, *, flush: bool, label: bool) -> str:
        if flush and self._flush():
            return "cache flush failed; retry the update after in-flight Host writebacks drain"
        # Over memory that is gone it fails the engine; a checkpoint that is none, or is not there, changes nothing.
        how = "reload" if "weights" in self._released else "load"
        refused = [] if label else [why for why in self._pipeline.collective_rpc(how, path) if why]
        return refused[0] if refused else ""

    def _rebalance(self) -> str:
        if self._options.rebalance_s is None:
            return "expert rebalancing needs the server to start with --enable-eplb"
        self._rebalanced_at = time.monotonic()
        return ""
