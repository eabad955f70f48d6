"""A model of one inference engine in memory: its memory, its admission, its requests, and what ends its process.

It behaves as SGLang does. Source: sglang 0.5.23, measured: a release while requests run, a release of a released tag
and a restore of a mapped tag each end the process. Without the memory saver a release answers and frees nothing. A load
stores whatever version it is given. A push that was not ended makes the next one fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from ..core.capabilities import Capabilities
from ..core.facts import GARBAGE, Admission, Contents, PauseMode, Tag
from ..core.units import GIB
from .journal import Entry, Journal

#: Bytes per rank of a tag without `expected_bytes`, unless `sizes` gives them.
SIZE_BYTES = 2 * GIB
#: Bytes that every rank holds beside its tags.
BASE_BYTES = GIB // 2

_PIDS = count(1000, 100)


class Rejection(Exception):
    """Raised where the model refuses a call; nothing has changed."""


class ScriptedEngine:
    """One engine process; `restart` replaces it by a new one. Sizes are in bytes per rank."""

    def __init__(
        self,
        name: str,
        capabilities: Capabilities,
        *,
        journal: Journal,
        sizes: Mapping[Tag, int] | None = None,
        devices: tuple[str, ...] | None = None,
        version: str | None = "v0",
    ) -> None:
        self.name = name
        self.capabilities = capabilities
        self.journal = journal
        given = sizes or {}
        self.sizes = {spec.name: given.get(spec.name, spec.expected_bytes or SIZE_BYTES) for spec in capabilities.tags}
        #: The device of each rank; several ranks may share one.
        self.devices = devices or tuple(f"gpu-{rank}" for rank in range(capabilities.ranks))
        self.launch_version = version
        #: What no engine may do and this one did: serve garbage weights, or from a stale cache.
        self.violations: list[str] = []
        #: Why its processes ended, in order.
        self.deaths: list[str] = []
        #: False: the process is alive and answers nothing.
        self.reachable = True
        #: Whether a release frees the memory that it acknowledges; at first, whether there is a memory saver.
        self.frees = capabilities.memory_saver is not False
        #: Bytes per rank that a release leaves resident beside the base.
        self.leak_bytes = 0
        #: How many more times the idle proof finds a running request; -1: always.
        self.stubborn = 0
        #: The version that it reports instead of the true one, if set.
        self.false_label: str | None = None
        #: The checksums that it reports: of all weights, and of each model role (target, draft).
        self.checksum: str | None = None
        self.checksums: dict[str, str] = {}
        self._boots = 0
        self._launch()

    def _launch(self) -> None:
        self._boots += 1
        self.boot = f"{self.name}-boot-{self._boots}"
        self.pid = next(_PIDS)
        self.alive = True
        self.admission: Admission = "open"
        self.paused_by: PauseMode | None = None
        self.running = 0
        self.parked = 0
        self.unmapped: set[Tag] = set()
        self.contents = {tag: Contents("launched", self.launch_version) for tag in self.capabilities.stage("weights")}
        self.label = self.launch_version
        self.cache_fresh = True
        self.resident = dict(self.sizes)
        self.leaked_bytes = 0
        self.pushed: str | None = None
        self.pushing = False

    # its process and its requests

    def die(self, why: str) -> None:
        """Ends the process and frees its memory."""
        if self.alive:
            self.alive = False
            self.deaths.append(why)
            self.resident = dict.fromkeys(self.sizes, 0)
            self.journal.append(Entry(self.name, "died", answer=why))

    def restart(self) -> None:
        """Replaces the process by a new one, which admits requests."""
        self.die("it was restarted")
        self._launch()

    def submit(self, requests: int = 1) -> bool:
        """Submits requests. True where they run; while the admission is closed they wait uncounted."""
        if not self.alive or self.admission == "closed":
            return False
        self.running += requests
        self._serve()
        return self.alive

    def finish(self) -> None:
        """Ends all running requests."""
        self.running = 0

    # its interface

    def apply(self, name: str, args: Mapping[str, Any]) -> None:
        """Applies the effect of a call. Raises Rejection where the engine refuses it."""
        if not self.alive:
            return
        effects: dict[str, Callable[..., None]] = {
            "pause": self._pause,
            "resume": self._resume,
            "flush": self._flush,
            "release": self._release,
            "restore": self._restore,
            "load": self._load,
            "begin_update": self._begin_update,
            "push_tensor": self._push,
            "end_update": self._end_update,
            "close_update": self._close_update,
        }
        effects[name](**args)

    def idle(self) -> bool:
        """Whether no request runs; if so, drops the prefix cache."""
        if self.stubborn:
            self.stubborn -= self.stubborn > 0
            return False
        if self.running:
            return False
        self.cache_fresh = True
        return True

    def generate(self) -> bool:
        """Whether a token is generated: not while the admission is closed."""
        if not self.alive or self.admission == "closed":
            return False
        self._serve()
        return self.alive

    def bytes_by_device(self) -> dict[str, int]:
        """Returns the resident bytes of its ranks on each device."""
        held: dict[str, int] = {}
        each = BASE_BYTES + self.leaked_bytes + sum(self.resident.values())
        for device in self.devices:
            held[device] = held.get(device, 0) + each
        return held

    def idle_and_closed(self) -> bool:
        """Whether the admission is closed and no request runs."""
        return self.admission == "closed" and self.running == 0

    # the effects of its calls

    def _pause(self, mode: PauseMode) -> None:
        self.admission, self.paused_by = "closed", mode
        if mode == "keep":
            self.parked += self.running
        if mode != "freeze":
            self.running = 0

    def _resume(self) -> None:
        self.admission, self.paused_by = "open", None
        self.running += self.parked
        self.parked = 0
        if self.running:
            self._serve()

    def _flush(self) -> None:
        if self.running:
            raise Rejection("requests still run")
        self.cache_fresh = True

    def _release(self, tags: list[Tag], keep: bool = False) -> None:
        for tag in tags:
            if self.running or self.stubborn:
                return self.die("released while requests ran")
            if tag in self.unmapped and self.capabilities.memory_saver is not False:
                return self.die(f"{tag} was released twice")
            self.unmapped.add(tag)
            self._give_back(tag, keep=keep)
        return None

    def _give_back(self, tag: Tag, *, keep: bool) -> None:
        self.cache_fresh = False
        if self.frees:
            self.resident[tag] = 0
            self.leaked_bytes = self.leak_bytes
        if tag in self.contents:
            keeps = keep or self.capabilities.spec(tag).on_release == "kept"
            kept = keeps and self.contents[tag] != GARBAGE
            self.contents[tag] = Contents("kept", self.contents[tag].version) if kept else GARBAGE

    def _restore(self, tags: list[Tag]) -> None:
        for tag in tags:
            if tag not in self.unmapped:
                return self.die(f"{tag} was restored, and was not released")
            self.unmapped.discard(tag)
            self.resident[tag] = self.sizes[tag]
        return None

    def _load(self, path: str, version: str, flush: bool) -> None:
        if self.unmapped & set(self.contents):
            return self.die("weights were loaded into memory that is not mapped")
        self.contents = {tag: Contents("loaded", version) for tag in self.contents}
        self.label = version
        self.cache_fresh = flush and not self.running
        return None

    def _begin_update(self) -> None:
        if self.pushing:
            raise Rejection("a push is open already; end it first")
        self.pushing, self.pushed, self.cache_fresh = True, None, False
        self.contents = dict.fromkeys(self.contents, GARBAGE)

    def _push(self, version: str, **args: Any) -> None:
        if not self.pushing:
            raise Rejection("no update was begun")
        self.pushed = self.label = version

    def _end_update(self) -> None:
        if not self.pushing:
            raise Rejection("no update was begun")
        if self.pushed is not None:
            self.contents = {tag: Contents("loaded", self.pushed) for tag in self.contents}
        self.pushing = False

    def _close_update(self) -> None:
        self.pushing = False

    def _serve(self) -> None:
        if self.unmapped:
            return self.die(f"a request ran on memory that is not mapped ({', '.join(sorted(self.unmapped))})")
        if GARBAGE in self.contents.values():
            self.violations.append("served garbage weights")
        if not self.cache_fresh:
            self.violations.append("served from a stale cache")
        return None
