"""Continuous batching: the waiting and the running requests, and the pages of the KV pool that they hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from collections.abc import Sequence as Seq

from .kv_pool import PagePool, PrefixCache
from .model import Choice, Chunk
from .sequence import FinishReason, Output, Sequence
from .shape import PAGE_TOKENS

Forward = Callable[[Seq[Chunk]], list["Choice | None"]]

_ABORTED: FinishReason = {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
_ABORTED_WAITING: FinishReason = {"type": "abort", "message": "Abort in waiting queue"}
_TOO_LARGE: FinishReason = {"type": "abort", "message": "The request does not fit into the KV pool"}


class Batch:
    """The requests in the order of arrival. Used on the scheduler's thread only."""

    def __init__(self, pages: int, max_running: int, forward: Forward, emit: Callable[[Seq[Output]], None]) -> None:
        self.pool = PagePool(pages)
        self.cache = PrefixCache(self.pool)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.version = "default"  # of the weights, as they were labelled last
        self.generated = 0  # tokens since the start
        self.prefilled = 0  # tokens of prompts computed since the start, without those found in the prefix cache
        self.cache_queries = 0  # tokens that were looked for in the prefix cache since the start
        self.cache_hits = 0  # those that were found
        self.preemptions = 0  # running requests that were retracted since the start
        self._max_running = max_running
        self._forward = forward
        self._emit = emit

    def idle(self, *, ignore_waiting: bool) -> bool:
        """Whether no request runs, and none waits unless waiting requests are ignored."""
        return not self.running and (ignore_waiting or not self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Puts the request into the waiting queue; one that wants no token is finished at once."""
        if sequence.request.sampling.max_new_tokens:
            self.waiting.append(sequence)
            return
        sequence.finish = {"type": "length", "length": 0}
        self._emit([sequence.snapshot(self.version)])

    def relabel(self, version: str | None) -> None:
        """The weights have another version from here on; requests remember how many of their tokens are of the old one.

        Source: sglang 0.5.23, managers/scheduler.py record_weight_version_change.
        """
        if version is None or version == self.version:
            return
        for sequence in (*self.running, *self.waiting):
            sequence.relabelled(self.version)
        self.version = version

    def step(self, *, admit: bool = True) -> bool:
        """Computes the next chunk of every running request. Returns False where none runs.

        Waiting requests are admitted before, unless not `admit`.
        """
        self._finish_aborted()
        if admit:
            self._admit()
        for sequence in tuple(self.running):
            self._grow(sequence)
        if not self.running:
            return False
        advanced = tuple(self.running)
        self.prefilled += sum(each.chunk_end() - each.computed for each in advanced if not each.output)
        for sequence, choice in zip(advanced, self._forward([each.next_chunk() for each in advanced]), strict=True):
            self._advance(sequence, choice)
        self._emit([each.snapshot(self.version) for each in advanced if each.finish or each.request.stream])
        return True

    def abort(self, prefix: str, *, everything: bool) -> None:
        """Aborts requests whose id starts with `prefix`: waiting ones now, running ones at their next step.

        Of one that waits after a retract the front end answers what it was told, and not all that was generated.
        Source: sglang 0.5.23, measured: the scheduler compares with startswith, so that aborting "p-1" ends "p-10" too.
        """
        aborted = [each for each in self.waiting if everything or each.rid.startswith(prefix)]
        for sequence in aborted:
            self.waiting.remove(sequence)
            sequence.keep_reported()
            sequence.finish = _ABORTED_WAITING
        self._emit([each.snapshot(self.version) for each in aborted])
        for sequence in self.running:
            sequence.to_abort = sequence.to_abort or everything or sequence.rid.startswith(prefix)

    def finish(self, rids: Collection[str] | None, reason: FinishReason) -> bool:
        """Ends the requests with exactly these ids, or all, at once. Returns whether there were any."""
        ended = [each for each in (*self.running, *self.waiting) if rids is None or each.rid in rids]
        for sequence in ended:
            if sequence in self.running:
                self._end(sequence, reason)
            else:
                self.waiting.remove(sequence)
                sequence.finish = reason
        self._emit([each.snapshot(self.version) for each in ended])
        return bool(ended)

    def retract_all(self, *, first: bool = False) -> None:
        """Moves every running request to the waiting queue. It gives up its pages and is computed again later.

        It goes behind those that wait, or with `first` before them, in the order in which they ran.
        """
        retracted = tuple(self.running)
        for sequence in retracted:
            self._retract(sequence)
        if first:
            self.waiting.rotate(len(retracted))

    def _retract(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        sequence.computed = 0
        sequence.retractions += 1
        self.preemptions += 1
        self.waiting.append(sequence)

    def _finish_aborted(self) -> None:
        ended = [each for each in self.running if each.to_abort]
        for sequence in ended:
            self._end(sequence, _ABORTED)
        self._emit([each.snapshot(self.version) for each in ended])

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._max_running and self._fits(self.waiting[0]):
            sequence = self.waiting.popleft()
            sequence.pages = self.cache.match(sequence.tokens)
            sequence.computed = len(sequence.pages) * PAGE_TOKENS
            self.cache_queries += len(sequence.tokens)
            self.cache_hits += sequence.computed
            sequence.cached = max(sequence.cached, min(sequence.computed, len(sequence.request.prompt)))
            self.running.append(sequence)

    def _fits(self, sequence: Sequence) -> bool:
        # A request is admitted only where its pages fit, so that it retracts no other. One that is alone always is.
        needed = len(sequence.tokens) // PAGE_TOKENS + 1
        return not self.running or needed <= self.pool.pages - self.pool.used + self.cache.evictable()

    def _grow(self, sequence: Sequence) -> None:
        """Gives the sequence pages for its next chunk. Where none is free, others are retracted or it is aborted."""
        while sequence in self.running and len(sequence.pages) * PAGE_TOKENS < sequence.chunk_end():
            page = self.pool.take()
            if page is not None:
                sequence.pages.append(page)
            elif not self.cache.evict():
                self._free_pages(sequence)

    def _free_pages(self, sequence: Sequence) -> None:
        if len(self.running) > 1:
            self._retract(self.running[-1])  # the one admitted last has the least to compute again; it may be this one
            return
        self._end(sequence, _TOO_LARGE)
        self._emit([sequence.snapshot(self.version)])

    def _advance(self, sequence: Sequence, choice: Choice | None) -> None:
        sequence.computed = sequence.chunk_end()
        if choice is None:
            return
        sequence.append(choice)
        self.generated += 1
        if sequence.finish:
            self._end(sequence, sequence.finish)

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        sequence.finish = reason
        self.cache.insert(sequence.tokens[: sequence.computed], sequence.pages)
        self._free(sequence)
        self.running.remove(sequence)

    def _free(self, sequence: Sequence) -> None:
        for page in sequence.pages:
            self.pool.give_back(page)
        sequence.pages = []
