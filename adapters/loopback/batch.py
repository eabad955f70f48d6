"""Continuous batching: which requests wait, which run, and which pages of the KV pool they hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq

from .kv_pool import PagePool, PrefixCache
from .model import Chunk
from .sequence import FinishReason, Output, Sequence
from .shape import PAGE_TOKENS

Forward = Callable[[Seq[Chunk]], list["int | None"]]

_ABORTED: FinishReason = {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
_ABORTED_WAITING: FinishReason = {"type": "abort", "message": "Abort in waiting queue"}
_TOO_LARGE: FinishReason = {"type": "abort", "message": "The request does not fit into the KV pool"}


class Batch:
    """Requests in arrival order. Everything here runs on the scheduler's thread."""

    def __init__(self, pages: int, max_running: int, forward: Forward, emit: Callable[[Seq[Output]], None]) -> None:
        self.pool = PagePool(pages)
        self.cache = PrefixCache(self.pool)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.generated = 0  # tokens since the start
        self.prefilled = 0  # tokens of prompts computed since the start, those found in the cache not among them
        self._max_running = max_running
        self._forward = forward
        self._emit = emit

    def idle(self, *, ignore_waiting: bool) -> bool:
        """Nothing runs, and nothing waits unless that does not count."""
        return not self.running and (ignore_waiting or not self.waiting)

    def add(self, sequence: Sequence) -> None:
        """The request waits; one that asks for no token has ended."""
        if sequence.request.sampling.max_new_tokens:
            self.waiting.append(sequence)
            return
        sequence.finish = {"type": "length", "length": 0}
        self._emit([sequence.snapshot()])

    def step(self) -> bool:
        """Every running request is one chunk further; False if there was none."""
        self._finish_aborted()
        self._admit()
        for sequence in tuple(self.running):
            self._grow(sequence)
        if not self.running:
            return False
        advanced = tuple(self.running)
        self.prefilled += sum(each.chunk_end() - each.computed for each in advanced if not each.output)
        for sequence, token in zip(advanced, self._forward([each.next_chunk() for each in advanced]), strict=True):
            self._advance(sequence, token)
        self._emit([each.snapshot() for each in advanced if each.finish or each.request.stream])
        return True

    def abort(self, prefix: str, *, everything: bool) -> None:
        """Waiting requests whose id starts so have ended; running ones end at their next step.

        Source: sglang 0.5.23, the scheduler compares with startswith: aborting "p-1" ends "p-10" too.
        """
        hit = [each for each in self.waiting if everything or each.rid.startswith(prefix)]
        for sequence in hit:
            self.waiting.remove(sequence)
            sequence.finish = _ABORTED_WAITING
        self._emit([each.snapshot() for each in hit])
        for sequence in self.running:
            sequence.to_abort = sequence.to_abort or everything or sequence.rid.startswith(prefix)

    def retract_all(self) -> None:
        """Nothing runs; what ran waits, without pages, and will be computed again from its tokens."""
        for sequence in tuple(self.running):
            self._retract(sequence)

    def _retract(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        sequence.computed = 0
        sequence.retractions += 1
        self.waiting.append(sequence)

    def _finish_aborted(self) -> None:
        ended = [each for each in self.running if each.to_abort]
        for sequence in ended:
            self._end(sequence, _ABORTED)
        self._emit([each.snapshot() for each in ended])

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._max_running and self._fits(self.waiting[0]):
            sequence = self.waiting.popleft()
            sequence.pages = self.cache.match(sequence.tokens)
            sequence.computed = len(sequence.pages) * PAGE_TOKENS
            sequence.cached = max(sequence.cached, min(sequence.computed, len(sequence.request.prompt)))
            self.running.append(sequence)

    def _fits(self, sequence: Sequence) -> bool:
        # A retracted request must not come back only to push another one out; alone, one may always try.
        needed = len(sequence.tokens) // PAGE_TOKENS + 1
        return not self.running or needed <= self.pool.pages - self.pool.used + self.cache.evictable()

    def _grow(self, sequence: Sequence) -> None:
        """The sequence has pages for its next chunk; others gave theirs, or it ended, where there were none."""
        while sequence in self.running and len(sequence.pages) * PAGE_TOKENS < sequence.chunk_end():
            page = self.pool.take()
            if page is not None:
                sequence.pages.append(page)
            elif not self.cache.evict():
                self._make_room(sequence)

    def _make_room(self, sequence: Sequence) -> None:
        if len(self.running) > 1:
            self._retract(self.running[-1])  # the youngest, as it loses least; it may be this one
            return
        self._end(sequence, _TOO_LARGE)
        self._emit([sequence.snapshot()])

    def _advance(self, sequence: Sequence, token: int | None) -> None:
        sequence.computed = sequence.chunk_end()
        if token is None:
            return
        sequence.append(token)
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
