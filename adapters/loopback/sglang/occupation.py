"""Releases and resumes memory by tag. As in SGLang, a call for a tag in the wrong state ends the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..tag_memory import ALL_TAGS, TagMemory


class MemoryOccupation:
    """Releases and resumes tags, and knows which are released. Every exception here ends the engine.

    Source: sglang 0.5.23, managers/scheduler_components/weight_updater.py checks no tags and catches nothing.
    """

    def __init__(self, memory: TagMemory, flush: Callable[[], object]) -> None:
        self._memory = memory
        self._flush = flush
        self._offloaded: set[str] = set()  # a set, as in SGLang: a tag that was released twice is resumed once

    def release(self, tags: Sequence[str]) -> None:
        """Releases the tags' memory; a release of kv_cache also empties the prefix cache."""
        wanted = tuple(tags or ALL_TAGS)
        self._offloaded.update(wanted)
        if "kv_cache" in wanted:
            self._flush()
        self._memory.free(wanted)

    def resume(self, tags: Sequence[str]) -> None:
        """Makes the tags' memory resident. The prefix cache is left as it is."""
        wanted = tuple(tags or ALL_TAGS)
        for tag in wanted:
            self._offloaded.remove(tag)  # KeyError for a tag that is not released, before any memory is mapped
        self._memory.map(wanted)
