"""One tenant of a device in this process (an engine or a trainer): its memory, its modules and the calls on them.

Nothing here is asynchronous: the adapter runs every call in the tenant's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lifecycle.core.facts import Tag
from lifecycle.core.observation import Probe

from . import loading
from .checksum import checksums, combined
from .errors import ModulesChanged, Refused, listed
from .gate import InFlight
from .identity import Identity, changes, identities
from .saver import Tags
from .staging import HostStaging
from .tensors import Leaf, Modules, leaves, spans


def do_nothing() -> None:
    """The hook of a user who gives none."""


@dataclass(slots=True)
class Hooks:
    """Functions of the user that this library calls.

    - `generate` returns the token ids that the engine generates for a probe.
    - `drop_cache` empties the prefix cache, after KV memory was restored or weights were replaced.
    - `drop_groups` and `rebuild_groups` destroy the process groups before a release and create them after the restore.
      No region can hold the buffers of NCCL's groups.
    """

    generate: Callable[[Probe], Sequence[int]] | None = None
    drop_cache: Callable[[], None] = do_nothing
    drop_groups: Callable[[], None] | None = None
    rebuild_groups: Callable[[], None] | None = None


@dataclass(slots=True)
class Tenant:
    """The memory and the modules of a tenant. Every call raises Refused where it was refused before any change.

    `modules_by_tag` has the modules (or optimizers) whose tensors lie in a tag's memory, by tag and name. `stagings`
    stage all tensors of a tag. `buffers` stage only its buffers, for a release after which a checkpoint or a push
    brings the parameters.
    """

    tags: Tags
    in_flight: InFlight
    hooks: Hooks = field(default_factory=Hooks)
    modules_by_tag: dict[Tag, dict[str, Any]] = field(default_factory=dict)
    stagings: dict[Tag, HostStaging] = field(default_factory=dict)
    buffers: dict[Tag, HostStaging] = field(default_factory=dict)
    version: str | None = None
    _identities_at_release: dict[Tag, dict[str, Identity]] = field(default_factory=dict)
    _pushed_addresses: set[int] = field(default_factory=set)
    _groups_are_dropped: bool = False
    _is_quiesced: bool = False

    # admission

    def close(self, mode: Any) -> None:
        """Stops admission."""
        self.in_flight.close(mode)

    def open(self) -> None:
        """Admits requests again."""
        self._is_quiesced = False
        self.in_flight.open()

    # memory

    def stage(self, tag: Tag) -> dict[str, Any]:
        """Copies the tag's contents to host memory."""
        copied = self.stagings[tag].stage()
        return {"bytes": copied.bytes, "seconds": copied.seconds}

    def unstage(self, tag: Tag) -> dict[str, Any]:
        """Copies the staged contents back into the tag."""
        copied = self.stagings[tag].restore()
        return {"bytes": copied.bytes, "seconds": copied.seconds}

    def stage_buffers(self, tag: Tag) -> None:
        """Copies the buffers of the tag's modules to host memory."""
        self.buffers[tag].stage()

    def unstage_buffers(self, tag: Tag) -> None:
        """Copies the staged buffers back, where any were staged."""
        if self.buffers[tag].holds:
            self.buffers[tag].restore()

    def every_staging(self) -> list[HostStaging]:
        """The stagings of all tags, of whole contents and of buffers."""
        return [*self.stagings.values(), *self.buffers.values()]

    def release(self, tag: Tag) -> None:
        """Releases the tag's memory, and records where its tensors lie."""
        before = identities(self.modules_by_tag.get(tag, {}))
        self.tags.release(tag)
        self._identities_at_release[tag] = before

    def restore(self, tag: Tag) -> None:
        """Maps the tag's memory again."""
        self.tags.restore(tag)

    def check_modules(self) -> None:
        """Raises ModulesChanged where a tensor of a released tag has changed since the release."""
        changed: list[str] = []
        for tag in sorted(self.tags.released):
            now = identities(self.modules_by_tag.get(tag, {}))
            changed += changes(self._identities_at_release.get(tag, {}), now)
        if changed:
            raise ModulesChanged(changed)

    def collect(self) -> None:
        """Frees memory that this process holds and does not use."""
        self.tags.backend.collect()

    def synchronize(self) -> None:
        """Waits until everything queued on the device has run."""
        self.tags.backend.synchronize()

    def quiesce(self) -> None:
        """Waits for the device, and frees unused memory unless that was done since admission was last opened."""
        self.synchronize()
        if not self._is_quiesced:
            self.collect()
            self._is_quiesced = True

    def drop_groups(self) -> None:
        """Destroys the process groups by the user's hook, where they exist."""
        if self.hooks.drop_groups is not None and not self._groups_are_dropped:
            self.hooks.drop_groups()
            self._groups_are_dropped = True

    def rebuild_groups(self) -> None:
        """Creates the process groups by the user's hook, where they were destroyed."""
        if self.hooks.rebuild_groups is not None and self._groups_are_dropped:
            self.hooks.rebuild_groups()
            self._groups_are_dropped = False

    def drop_cache(self) -> None:
        """Empties the prefix cache by the user's hook: it belongs to other weights, or lay in released memory."""
        self.hooks.drop_cache()

    # weights

    def check_checkpoint(self, path: str) -> None:
        """Raises Refused where the checkpoint lacks a tensor of a module, or has one of another shape."""
        loading.check_checkpoint(self.modules(), path)

    def load(self, path: str, version: str) -> None:
        """Copies the checkpoint's weights into the modules."""
        self._forget_contents()
        loading.load(self.modules(), path)
        self.synchronize()
        self.version = version

    def begin_push(self) -> None:
        """Discards staged copies, so that no restore can overwrite what the trainer writes from now on."""
        self._forget_contents()

    def push_tensors(self, tensors: Mapping[str, torch.Tensor], module: str | None = None) -> int:
        """Copies the trainer's tensors into one module, the first unless named; returns how many they are."""
        modules = self.modules()
        name = module or next(iter(modules))
        if name not in modules:
            raise Refused(f"there is no module {name!r}; there are {', '.join(modules)}")
        self._pushed_addresses |= loading.write(name, modules[name], tensors)
        return len(tensors)

    def push_in_place(self, write: Callable[[Mapping[str, Any]], None]) -> None:
        """Calls `write` with the modules by name. By returning it confirms that it wrote every parameter."""
        with torch.no_grad():
            write(self.modules())
        self._pushed_addresses |= {
            parameter.data_ptr() for module in self.modules().values() for parameter in module.parameters()
        }

    def end_push(self, version: str) -> None:
        """Records the version of the pushed weights. Raises Refused where a parameter was not written."""
        missing = loading.unwritten(self.modules(), self._pushed_addresses)
        if missing:
            raise Refused(f"nothing was pushed to {listed(missing)}; their contents are unknown")
        self.synchronize()
        self.version = version

    def checksum(self) -> str:
        """One checksum of the tensors of all modules, without the KV caches among them."""
        return _checksum_of(leaf for leaf in leaves(self.modules()) if leaf.has_bytes and not self.is_kv(leaf.tensor))

    def modules(self) -> dict[str, Any]:
        """The modules of all tags, by name."""
        return {name: module for modules in self.modules_by_tag.values() for name, module in modules.items()}

    def _forget_contents(self) -> None:
        self._pushed_addresses.clear()
        self.version = None
        for staging in self.every_staging():
            staging.clear()

    # sizes

    def expected_bytes(self, tag: Tag) -> int:
        """Bytes that a release of the tag should free: its regions, and tensors that should lie in them and do not."""
        return self.tags.bytes(tag) + sum(span.size for span in spans(self.outside(tag)))

    def host_bytes(self, call: str, tag: Tag) -> int:
        """Bytes of host memory that this call on the tag would allocate now."""
        match call:
            case "stage":
                return self.stagings[tag].needed_bytes()
            case "stage_buffers":
                return self.buffers[tag].needed_bytes()
            case "release":
                return self.tags.host_bytes(tag)
        return 0

    def outside(self, tag: Tag) -> list[Leaf]:
        """The tensors of the tag's modules that lie on its device in no region. A release does not free them."""
        device = self.tags.backend.device.type
        found = (leaf for leaf in leaves(self.modules_by_tag.get(tag, {})) if leaf.has_bytes)
        return [leaf for leaf in found if leaf.tensor.device.type == device and self.tags.tag_of(leaf.tensor) is None]

    def is_kv(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor lies in a region of the KV stage. Such tensors are never staged."""
        tag = self.tags.tag_of(tensor)
        return tag is not None and self.tags.stage(tag) == "kv"


def modules_checksum(modules: Modules) -> str:
    """One checksum of every parameter and buffer. Equal modules have equal checksums, also on different devices."""
    return _checksum_of(leaves(modules))


def _checksum_of(found: Iterable[Leaf]) -> str:
    return combined(checksums(sorted(spans(found), key=lambda span: span.names)))
