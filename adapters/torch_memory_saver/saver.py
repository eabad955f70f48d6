"""Memory by tag: what each region holds, and the order in which it may be given back and taken again.

torch_memory_saver ends the process (exit 1, no exception) when a tag is paused or resumed out of turn, so the turn is
kept here. Source: torch_memory_saver 0.0.10, csrc/core.cpp.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, Protocol

import torch

from lifecycle.core.errors import ConfigurationError
from lifecycle.core.facts import Stage
from lifecycle.nodes.hook_mode import HookMode

from .errors import RegionRefused

#: The saver's own copy of a region's contents, kept through a release: page-locked, or in reclaimable host memory.
Backup = Literal["pinned", "mmap"]

#: The stage of tags that nobody declares otherwise.
STAGES: Mapping[str, Stage] = {"weights": "weights", "parameters": "weights", "optimizer": "weights"}


class Backend(Protocol):
    """What gives memory back and takes it again, at the same addresses. `tag` is unique in the process."""

    device: torch.device
    #: torch_memory_saver's, where that is what releases.
    hook_mode: HookMode | None

    def region(self, tag: str, backup: Backup | None) -> AbstractContextManager[None]:
        """A context: what this thread allocates on the device inside belongs to the tag."""

    def cuda_graph(self, graph: Any, tag: str, options: Mapping[str, Any]) -> AbstractContextManager[None]:
        """A context that captures a CUDA graph, whose memory belongs to the tag."""

    def pause(self, tag: str) -> None:
        """The tag's memory is given back. The device is synchronised first."""

    def resume(self, tag: str) -> None:
        """The tag's memory is mapped again; without a backup it holds garbage."""

    def synchronize(self) -> None:
        """Everything queued on the device has run."""

    def collect(self) -> None:
        """What this process holds and does not use is given back: garbage, caches, memory of ended peers."""

    def ranges(self, tag: str) -> Sequence[tuple[int, int]]:
        """Address and size in bytes of each of the tag's allocations."""

    def host_bytes(self, tag: str) -> int:
        """Host memory that the tag's next pause takes for its backup, beyond what it keeps from the last."""

    def device_key(self) -> str:
        """The name under which a residual reading has this device."""


class Tags:
    """The tags of one tenant of a device (an engine, a trainer), and which of them are released."""

    def __init__(self, owner: str, backend: Backend, *, stages: Mapping[str, Stage] | None = None) -> None:
        self.owner = owner
        self.backend = backend
        self._stages = {**STAGES, **(stages or {})}
        self._known: dict[str, Backup | None] = {}
        self._released: set[str] = set()
        self._lock = threading.RLock()
        _register(self)

    @property
    def known(self) -> tuple[str, ...]:
        """The tags that were opened at least once, in that order."""
        return tuple(self._known)

    @property
    def released(self) -> frozenset[str]:
        """The tags whose memory is given back now."""
        return frozenset(self._released)

    def stage(self, tag: str) -> Stage:
        """The stage in which the tag is restored: kv unless it was declared otherwise."""
        return self._stages.get(tag, "kv")

    def backup(self, tag: str) -> Backup | None:
        """The saver's own backup of this tag, if any."""
        return self._known[tag]

    @contextmanager
    def region(self, tag: str, backup: Backup | None = None) -> Iterator[None]:
        """Inside, what this thread allocates on the device belongs to `tag`; RegionRefused while that is released."""
        self._open(tag, backup)
        with self.backend.region(self._key(tag), backup):
            yield

    @contextmanager
    def cuda_graph(self, graph: Any, tag: str, options: Mapping[str, Any]) -> Iterator[None]:
        """Inside, a CUDA graph is captured; its memory belongs to `tag`."""
        self._open(tag, None)
        with self.backend.cuda_graph(graph, self._key(tag), options):
            yield

    def release(self, tag: str) -> None:
        """The tag's memory is given back; RegionRefused where it is already."""
        with self._lock:
            self._check(tag, released=False)
            self.backend.synchronize()
            self.backend.pause(self._key(tag))
            self._released.add(tag)

    def restore(self, tag: str) -> None:
        """The tag's memory is mapped again; RegionRefused where it is mapped."""
        with self._lock:
            self._check(tag, released=True)
            self.backend.resume(self._key(tag))
            self._released.remove(tag)

    def bytes(self, tag: str) -> int:
        """What the tag's allocations hold while they are mapped."""
        return sum(size for _, size in self.backend.ranges(self._key(tag)))

    def host_bytes(self, tag: str) -> int:
        """Host memory that a release of the tag newly takes for the saver's own backup."""
        return self.backend.host_bytes(self._key(tag))

    def mapped_bytes(self) -> int:
        """What this tenant holds of the device in regions now."""
        return sum(self.bytes(tag) for tag in self._known if tag not in self._released)

    def tag_of(self, tensor: torch.Tensor) -> str | None:
        """The tag in whose memory the tensor lies; None for one outside every region of this tenant."""
        if tensor.device.type != self.backend.device.type:
            return None
        address = tensor.untyped_storage().data_ptr()
        for tag in self._known:
            if any(start <= address < start + size for start, size in self.backend.ranges(self._key(tag))):
                return tag
        return None

    def close(self) -> None:
        """The owner's name can be used again; memory is left as it is."""
        if _TENANTS.get(self.owner) is self:
            del _TENANTS[self.owner]

    def _open(self, tag: str, backup: Backup | None) -> None:
        with self._lock:
            if tag in self._released:
                raise RegionRefused(
                    f"{self.owner}: the region {tag!r} is released; memory allocated in it now would kill the process "
                    "at the restore. Restore it first, or allocate outside"
                )
            if self.stage(tag) == "kv" and backup is not None:
                raise ConfigurationError(f"{self.owner}: {tag!r} is of the KV stage, which is never backed up")
            if self._known.setdefault(tag, backup) != backup:
                raise ConfigurationError(
                    f"{self.owner}: the region {tag!r} was opened with backup={self._known[tag]!r} before; "
                    f"it cannot have {backup!r} too"
                )

    def _check(self, tag: str, *, released: bool) -> None:
        if tag not in self._known:
            raise RegionRefused(f"{self.owner} has no region {tag!r}; it has {', '.join(self._known) or 'none'}")
        if (tag in self._released) is not released:
            is_, wanted = ("mapped", "restored") if released else ("released", "released again")
            raise RegionRefused(f"{self.owner}: the region {tag!r} is {is_} and cannot be {wanted}")

    def _key(self, tag: str) -> str:
        return f"{self.owner}/{tag}"


_TENANTS: weakref.WeakValueDictionary[str, Tags] = weakref.WeakValueDictionary()


def _register(tags: Tags) -> None:
    if tags.owner in _TENANTS:
        raise ConfigurationError(f"there is an engine {tags.owner!r} in this process already; give each its own name")
    _TENANTS[tags.owner] = tags


def cotenants(tags: Tags) -> list[Tags]:
    """The other tenants of this process on the same device.

    Tenants in other processes are not known here; a ledger of them is to stand beside this.
    """
    return [each for each in _TENANTS.values() if each is not tags and each.backend.device == tags.backend.device]
