"""Which tags sleep, and what sleep, wake and discard do with them.

Source: vllm 0.32.0, v1/executor/abstract.py and device_allocator/cumem.py; observed.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..tag_memory import TagMemory

SLEEP_TAGS = ("weights", "kv_cache")


class SleepingTags:
    """The tags that are said to sleep. Without `memory` (no sleep mode, or a CPU) they only are said to."""

    def __init__(self, memory: TagMemory | None, *, sleeps_half_awake: bool, can_discard: bool) -> None:
        self.asleep: set[str] = set()
        self._memory = memory
        self._sleeps_half_awake = sleeps_half_awake
        self._can_discard = can_discard

    def sleep(self, level: int) -> None:
        """Frees what is awake; at level 1 the weights are kept on the host. No effect while the weights sleep."""
        if ("weights" in self.asleep) if self._sleeps_half_awake else self.asleep:
            return
        self._free([tag for tag in SLEEP_TAGS if tag not in self.asleep], backup=level == 1)
        self.asleep.update(SLEEP_TAGS)

    def wake_up(self, tags: Sequence[str] | None) -> None:
        """Maps the tags, or all. One that does not sleep voids the whole list.

        Raises KeyError for a tag that is named twice: after the memory was mapped, with the later tags still asleep.
        """
        if not self.asleep or not self.asleep.issuperset(tags or ()):
            return
        if self._memory is not None:
            self._memory.map([tag for tag in SLEEP_TAGS if tag in self.asleep and (not tags or tag in tags)])
        if not tags:
            self.asleep.clear()
        for tag in tags or ():
            self.asleep.remove(tag)

    def discard(self, tag: str) -> None:
        """Frees the tag. It is recorded as asleep also where that fails."""
        self.asleep.add(tag)
        if not self._can_discard:
            raise RuntimeError("Selective discard is not supported on CPU.")
        self._free([tag], backup=False)

    def free_late(self) -> None:
        """Carries out what an injected fault delayed."""
        if self._memory is not None:
            self._memory.free_late()

    def _free(self, tags: Sequence[str], *, backup: bool) -> None:
        if self._memory is not None:
            self._memory.free(tags, backup=backup)
