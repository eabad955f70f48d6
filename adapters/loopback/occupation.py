"""Releases and resumes memory by tag. As in SGLang, a call for a tag in the wrong state ends the engine."""

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
    """Releases and resumes tags, and knows which are released. Every exception here ends the engine.

    Source: sglang 0.5.23, managers/scheduler_components/weight_updater.py checks no tags and catches nothing.
    """

    def __init__(
        self, pipeline: Pipeline, bytes_of_tag: dict[str, int], flush: Callable[[], object], faults: FaultHook
    ):
        self._pipeline = pipeline
        self._bytes = bytes_of_tag
        self._flush = flush
        self._faults = faults
        self._offloaded: set[str] = set()  # a set, as in SGLang: a tag that was released twice is resumed once
        self._late: list[_LateRelease] = []
        self._grown: list[Region] = []

    def release(self, tags: Sequence[str]) -> None:
        """Releases the tags' memory; a release of kv_cache also empties the prefix cache."""
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
        """Makes the tags' memory resident. The prefix cache is left as it is."""
        wanted = tuple(tags or ALL_TAGS)
        for tag in wanted:
            self._offloaded.remove(tag)  # KeyError for a tag that is not released, before any memory is mapped
        for tag in ("cuda_graph", "weights", "kv_cache"):
            if tag in wanted:
                self._pipeline.collective_rpc("resume", tag, bool(self._faults.has("resume", "zeros")))
        if grown := self._faults.grown_bytes():
            self._grown.append(Region(grown))

    def free_late(self) -> None:
        """Carries out the delayed releases (fault `late`) that are due."""
        due = [each for each in self._late if each.due <= time.monotonic()]
        self._late = [each for each in self._late if each not in due]
        for late in due:
            self._free(late.tags)

    def _free(self, tags: Sequence[str]) -> None:
        budget = self._faults.kept_bytes(sum(self._bytes.get(tag, 0) for tag in tags))
        for tag in (tag for tag in ALL_TAGS if tag in tags):
            kept = min(budget, self._bytes.get(tag, 0))
            budget -= kept
            self._pipeline.collective_rpc("release", tag, self._shares(tag, kept))

    def _shares(self, tag: str, kept_bytes: int) -> list[int]:  # [ranks]
        """The bytes of the tag that each rank keeps resident."""
        shares = [-(-kept_bytes // self._pipeline.size)] * self._pipeline.size
        stuck = self._faults.stuck_rank()
        if stuck is not None and stuck < len(shares):
            shares[stuck] = self._bytes.get(tag, 0)
        return shares
