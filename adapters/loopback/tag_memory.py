"""The memory of tags on all ranks: freed and mapped again, under the faults that are injected into a release."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .faults import FaultHook
from .memory import Region
from .pipeline import Pipeline

ALL_TAGS = ("kv_cache", "weights", "cuda_graph")


@dataclass(frozen=True, slots=True)
class _LateRelease:
    due: float
    tags: tuple[str, ...]
    backup: bool


class TagMemory:
    """Frees and maps tags. Which are asleep is known to whoever calls it. Scheduler's thread only."""

    def __init__(self, pipeline: Pipeline, bytes_of_tag: Mapping[str, int], faults: FaultHook) -> None:
        self._pipeline = pipeline
        self._bytes = bytes_of_tag
        self._faults = faults
        self._late: list[_LateRelease] = []
        self._grown: list[Region] = []

    def free(self, tags: Sequence[str], *, backup: bool = True) -> None:
        """Returns the tags' memory to the operating system, now or late. Without `backup` contents are lost."""
        freed = ALL_TAGS if self._faults.has("release", "all") else tuple(tags)
        if delay_s := self._faults.release_delay_s():
            self._late.append(_LateRelease(time.monotonic() + delay_s, freed, backup))
        else:
            self._free(freed, backup)

    def map(self, tags: Sequence[str]) -> None:
        """Makes the tags' memory resident."""
        for tag in ("cuda_graph", "weights", "kv_cache"):
            if tag in tags:
                self._pipeline.collective_rpc("resume", tag, bool(self._faults.has("resume", "zeros")))
        if grown := self._faults.grown_bytes():
            self._grown.append(Region(grown))

    def free_late(self) -> None:
        """Carries out the delayed releases (fault `late`) that are due."""
        due = [each for each in self._late if each.due <= time.monotonic()]
        self._late = [each for each in self._late if each not in due]
        for late in due:
            self._free(late.tags, late.backup)

    def _free(self, tags: Sequence[str], backup: bool) -> None:
        budget = self._faults.kept_bytes(sum(self._bytes.get(tag, 0) for tag in tags))
        for tag in (tag for tag in ALL_TAGS if tag in tags):
            kept = min(budget, self._bytes.get(tag, 0))
            budget -= kept
            self._pipeline.collective_rpc("release", tag, self._shares(tag, kept), backup)

    def _shares(self, tag: str, kept_bytes: int) -> list[int]:  # [ranks]
        """The bytes of the tag that each rank keeps resident."""
        shares = [-(-kept_bytes // self._pipeline.size)] * self._pipeline.size
        stuck = self._faults.stuck_rank()
        if stuck is not None and stuck < len(shares):
            shares[stuck] = self._bytes.get(tag, 0)
        return shares
