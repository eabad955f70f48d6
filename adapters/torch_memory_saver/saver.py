"""Memory by tag: what each region holds, and whether it may be released or restored now.

torch_memory_saver exits the process with status 1, without an exception, when a tag is paused twice or resumed while it
is not paused. `Tags` refuses both before the saver is called. Source: torch_memory_saver 0.0.10, csrc/core.cpp.
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

#: The saver's own copy of a region's contents during a release: in page-locked memory, or in reclaimable host memory.
Backup = Literal["pinned", "mmap"]

#: The stage of each tag for which the user gives none. A tag that is not named here is of the KV stage.
STAGES: Mapping[str, Stage] = {"weights": "weights", "parameters": "weights", "optimizer": "weights"}


class Backend(Protocol):
    """Releases memory and maps it again at the same addresses. Every `tag` is unique in the process."""

    device: torch.device
    #: The hook mode of torch_memory_saver; None for a backend that does not use it.
    hook_mode: HookMode | None

    def region(self, tag: str, backup: Backup | None) -> AbstractContextManager[None]:
        """A context in which what this thread allocates on the device belongs to the tag."""

    def cuda_graph(self, graph: Any, tag: str, options: Mapping[str, Any]) -> AbstractContextManager[None]:
        """A context that captures a CUDA graph, whose memory belongs to the tag."""

    def pause(self, tag: str) -> None:
        """Releases the tag's memory. The caller has synchronised the device."""

    def resume(self, tag: str) -> None:
        """Maps the tag's memory again; without a backup it holds garbage."""

    def synchronize(self) -> None:
        """Waits until everything queued on the device has run."""

    def collect(self) -> None:
        """Frees memory that the process does not use: garbage, caches, memory shared with ended processes."""

    def ranges(self, tag: str) -> Sequence[tuple[int, int]]:
        """Address and size in bytes of each of the tag's allocations."""

    def host_bytes(self, tag: str) -> int:
        """Bytes of host memory that the tag's next pause allocates for its backup."""

    def device_key(self) -> str:
        """The name of this device in a residual reading."""


class Tags:
    """The tags of one tenant, and which of them are released.

    A tenant is an engine or a trainer that shares this process, and perhaps the device, with others. `name` is unique
    among the tenants of the process.
    """

    def __init__(self, name: str, backend: Backend, *, stages: Mapping[str, Stage] | None = None) -> None:
        self.name = name
        self.backend = backend
        self._stages = {**STAGES, **(stages or {})}
        self._known: dict[str, Backup | None] = {}
        self._released: set[str] = set()
        self._lock = threading.RLock()
        _register(self)

    @property
    def known(self) -> tuple[str, ...]:
        """The tags whose regions were opened at least once, in the order of the first opening."""
        return tuple(self._known)

    @property
    def released(self) -> frozenset[str]:
        """The tags whose memory is released now."""
        return frozenset(self._released)

    def stage(self, tag: str) -> Stage:
        """The stage in which the tag is restored."""
        return self._stages.get(tag, "kv")

    def backup(self, tag: str) -> Backup | None:
        """The kind of the saver's own backup of this tag; None where it has none."""
        return self._known[tag]

    @contextmanager
    def region(self, tag: str, backup: Backup | None = None) -> Iterator[None]:
        """A context in which what this thread allocates on the device belongs to `tag`.

        Raises RegionRefused while the tag is released.
        """
        self._open(tag, backup)
        with self.backend.region(self._key(tag), backup):
            yield

    @contextmanager
    def cuda_graph(self, graph: Any, tag: str, options: Mapping[str, Any]) -> Iterator[None]:
        """A context in which a CUDA graph is captured; its memory belongs to `tag`."""
        self._open(tag, None)
        with self.backend.cuda_graph(graph, self._key(tag), options):
            yield

    def release(self, tag: str) -> None:
        """Releases the tag's memory. Raises RegionRefused where it is released."""
        with self._lock:
            self._check(tag, released=False)
            self.backend.synchronize()
            self.backend.pause(self._key(tag))
            self._released.add(tag)

    def restore(self, tag: str) -> None:
        """Maps the tag's memory again. Raises RegionRefused where it is mapped."""
        with self._lock:
            self._check(tag, released=True)
            self.backend.resume(self._key(tag))
            self._released.remove(tag)

    def bytes(self, tag: str) -> int:
        """The size of the tag's allocations, mapped or not."""
        return sum(size for _, size in self.backend.ranges(self._key(tag)))

    def host_bytes(self, tag: str) -> int:
        """Bytes of host memory that a release of the tag allocates for the saver's own backup."""
        return self.backend.host_bytes(self._key(tag))

    def mapped_bytes(self) -> int:
        """Bytes of the device that this tenant's regions hold now."""
        return sum(self.bytes(tag) for tag in self._known if tag not in self._released)

    def tag_of(self, tensor: torch.Tensor) -> str | None:
        """The tag in whose memory the tensor lies; None for a tensor outside every region of this tenant."""
        if tensor.device.type != self.backend.device.type:
            return None
        address = tensor.untyped_storage().data_ptr()
        for tag in self._known:
            if any(start <= address < start + size for start, size in self.backend.ranges(self._key(tag))):
                return tag
        return None

    def close(self) -> None:
        """Frees the tenant's name for another. Memory is left as it is."""
        if _TENANTS.get(self.name) is self:
            del _TENANTS[self.name]

    def _open(self, tag: str, backup: Backup | None) -> None:
        with self._lock:
            if tag in self._released:
                raise RegionRefused(
                    f"{self.name}: the region {tag!r} is released; memory allocated in it now would kill the process "
                    "at the restore. Restore it first, or allocate outside"
                )
            if self.stage(tag) == "kv" and backup is not None:
                raise ConfigurationError(f"{self.name}: {tag!r} is of the KV stage, which is never backed up")
            if self._known.setdefault(tag, backup) != backup:
                raise ConfigurationError(
                    f"{self.name}: the region {tag!r} was opened with backup={self._known[tag]!r} before; "
                    f"it cannot have {backup!r} too"
                )

    def _check(self, tag: str, *, released: bool) -> None:
        if tag not in self._known:
            raise RegionRefused(f"{self.name} has no region {tag!r}; it has {', '.join(self._known) or 'none'}")
        if (tag in self._released) is not released:
            is_, wanted = ("mapped", "restored") if released else ("released", "released again")
            raise RegionRefused(f"{self.name}: the region {tag!r} is {is_} and cannot be {wanted}")

    def _key(self, tag: str) -> str:
        return f"{self.name}/{tag}"


#: The tenants of this process by name.
_TENANTS: weakref.WeakValueDictionary[str, Tags] = weakref.WeakValueDictionary()


def _register(tags: Tags) -> None:
    if tags.name in _TENANTS:
        raise ConfigurationError(f"there is an engine {tags.name!r} in this process already; give each its own name")
    _TENANTS[tags.name] = tags


def cotenants(tags: Tags) -> list[Tags]:
    """The other tenants of this process on the same device. Tenants in other processes are not known here."""
    return [each for each in _TENANTS.values() if each is not tags and each.backend.device == tags.backend.device]
