"""Release and resume of memory by tag, with SGLang's bookkeeping and its lack of forgiveness."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .faults import FaultHook
from .memory import Region
from .pipeline import Pipeline

ALL_TAGS = ("kv_cache", "weights", "cuda_graph")


@dataclass(frozen=True, slots=True)
class _LateRelease:
    due: float
    tags: tuple[str, ...]


class MemoryOccupation:
    """Which tags are offloaded. Every exception here ends the engine, as it does SGLang's scheduler.

    Source: sglang 0.5.23, managers/scheduler_components/weight_updater.py: no try, no check of the tags.
    """

    def __init__(
        self, pipeline: Pipeline, bytes_of_tag: dict[str, int], flush: Callable[[], object], faults: FaultHook
    ):
        self._pipeline = pipeline
        self._bytes = bytes_of_tag
        self._flush = flush
        self._faults = faults
        self._offloaded: set[str] = set()  # a set: released twice is resumed once
        self._late: list[_LateRelease] = []
        self._grown: list[Region] = []

    def release(self, tags: Sequence[str]) -> None:
        """The tags' memory is the operating system's; with kv_cache the prefix cache is empty."""
        wanted = tuple(tags or ALL_TAGS)
        self._offloaded.update(wanted)
        if "kv_cache" in wanted:
            self._flush()
        freed = ALL_TAGS if self._faults.has("release", "all") else wanted
        if delay_s := self._faults.release_delay_s():
            self._late.append(_LateRelease(time.monotonic() + delay_s, freed))
        else:
            self._free(freed)

    def resume(self, tags: Sequence[str]) -> None:
        """The tags' memory is resident; the prefix cache is as it was."""
        wanted = tuple(tags or ALL_TAGS)
        for tag in wanted:
            self._offloaded.remove(tag)  # KeyError for one that is not released, before anything is done
        for tag in ("cuda_graph", "weights", "kv_cache"):
            if tag in wanted:
                self._pipeline.each("resume", tag, bool(self._faults.has("resume", "zeros")))
        if grown := self._faults.grown_bytes():
            self._grown.append(Region(grown))

    def free_late(self) -> None:
        """Releases that were answered early and are now due have happened."""
        due = [each for each in self._late if each.due <= time.monotonic()]
        self._late = [each for each in self._late if each not in due]
        for late in due:
            self._free(late.tags)

    def _free(self, tags: Sequence[str]) -> None:
        budget = self._faults.kept_bytes(sum(self._bytes.get(tag, 0) for tag in tags))
        for tag in (tag for tag in ALL_TAGS if tag in tags):
            kept = min(budget, self._bytes.get(tag, 0))
            budget -= kept
            self._pipeline.each("release", tag, self._shares(tag, kept))

    def _shares(self, tag: str, kept_bytes: int) -> list[int]:  # [ranks]
        """How many bytes of the tag each rank keeps."""
        shares = [-(-kept_bytes // self._pipeline.size)] * self._pipeline.size
        stuck = self._faults.stuck_rank()
        if stuck is not None and stuck < len(shares):
            shares[stuck] = self._bytes.get(tag, 0)
        return shares
