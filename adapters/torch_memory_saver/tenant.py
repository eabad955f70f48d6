"""One tenant of a device in this process: its memory, its modules, and what can be done to them. No I/O, no waiting."""

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
from .tensors import Leaf, Owners, leaves, spans


def nothing() -> None:
    """A hook that has nothing to do."""


@dataclass(slots=True)
class Hooks:
    """What the user has done at certain points. `drop_cache`: after KV memory came back, or weights changed.

    `generate` gives the token ids that the engine generates for a probe. The groups are NCCL's, whose buffers no
    region can hold: destroyed before a release, rebuilt after the restore.
    """

    generate: Callable[[Probe], Sequence[int]] | None = None
    drop_cache: Callable[[], None] = nothing
    drop_groups: Callable[[], None] | None = None
    rebuild_groups: Callable[[], None] | None = None


@dataclass(slots=True)
class Tenant:
    """Every method is an effect: it runs in the tenant's thread, and raises Refused where it touched nothing.

    `owners` are the modules (or optimizers) whose tensors lie in a tag's memory, by tag and name. `stagings` stage all
    of that; `buffers` only what neither a checkpoint nor a push need bring, where those bring the rest.
    """

    tags: Tags
    in_flight: InFlight
    hooks: Hooks = field(default_factory=Hooks)
    owners: dict[Tag, dict[str, Any]] = field(default_factory=dict)
    stagings: dict[Tag, HostStaging] = field(default_factory=dict)
    buffers: dict[Tag, HostStaging] = field(default_factory=dict)
    version: str | None = None
    _were: dict[Tag, dict[str, Identity]] = field(default_factory=dict)
    _pushed: set[int] = field(default_factory=set)
    _groups_are_down: bool = False
    _is_settled: bool = False

    # admission

    def close(self, mode: Any) -> None:
        """No request is admitted."""
        self.in_flight.close(mode)

    def open(self) -> None:
        """Requests are admitted."""
        self._is_settled = False
        self.in_flight.open()

    # memory

    def stage(self, tag: Tag) -> dict[str, Any]:
        """The tag's contents wait in host memory."""
        copied = self.stagings[tag].stage()
        return {"bytes": copied.bytes, "seconds": copied.seconds}

    def unstage(self, tag: Tag) -> dict[str, Any]:
        """The tag holds what was staged."""
        copied = self.stagings[tag].restore()
        return {"bytes": copied.bytes, "seconds": copied.seconds}

    def stage_buffers(self, tag: Tag) -> None:
        """The buffers of the tag's modules wait in host memory."""
        self.buffers[tag].stage()

    def unstage_buffers(self, tag: Tag) -> None:
        """The buffers hold what was staged, where anything was."""
        if self.buffers[tag].holds:
            self.buffers[tag].restore()

    def every_staging(self) -> list[HostStaging]:
        """All stagings that have host memory."""
        return [*self.stagings.values(), *self.buffers.values()]

    def release(self, tag: Tag) -> None:
        """The tag's memory is given back; which tensors lay there is remembered."""
        were = identities(self.owners.get(tag, {}))
        self.tags.release(tag)
        self._were[tag] = were

    def restore(self, tag: Tag) -> None:
        """The tag's memory is mapped again."""
        self.tags.restore(tag)

    def check_modules(self) -> None:
        """The tensors of every released tag are those that were released; ModulesChanged names those that are not."""
        changed = [
            each
            for tag in sorted(self.tags.released)
            for each in changes(self._were.get(tag, {}), identities(self.owners.get(tag, {})))
        ]
        if changed:
            raise ModulesChanged(changed)

    def collect(self) -> None:
        """What this process holds and does not use is given back."""
        self.tags.backend.collect()

    def synchronize(self) -> None:
        """Everything queued on the device has run."""
        self.tags.backend.synchronize()

    def settle(self) -> None:
        """The device is idle, and only what is in use is held; that is seen to once between two times of serving."""
        self.synchronize()
        if not self._is_settled:
            self.collect()
            self._is_settled = True

    def drop_groups(self) -> None:
        """The process groups are destroyed."""
        if self.hooks.drop_groups is not None and not self._groups_are_down:
            self.hooks.drop_groups()
            self._groups_are_down = True

    def rebuild_groups(self) -> None:
        """The process groups are there."""
        if self.hooks.rebuild_groups is not None and self._groups_are_down:
            self.hooks.rebuild_groups()
            self._groups_are_down = False

    def drop_cache(self) -> None:
        """What was computed with other weights, or lay in memory that was given back, is forgotten."""
        self.hooks.drop_cache()

    # weights

    def check_checkpoint(self, path: str) -> None:
        """The checkpoint has every tensor of every module."""
        loading.check_checkpoint(self.modules(), path)

    def load(self, path: str, version: str) -> None:
        """The modules hold the checkpoint's weights."""
        self._replace()
        loading.load(self.modules(), path)
        self.synchronize()
        self.version = version

    def begin_push(self) -> None:
        """What was there is given up: nothing can overwrite what the trainer writes now."""
        self._replace()

    def push_tensors(self, tensors: Mapping[str, torch.Tensor], owner: str | None = None) -> int:
        """These tensors of one module hold what the trainer gave; how many they are."""
        modules = self.modules()
        name = owner or next(iter(modules))
        if name not in modules:
            raise Refused(f"there is no module {name!r}; there are {', '.join(modules)}")
        self._pushed |= loading.write(name, modules[name], tensors)
        return len(tensors)

    def push_in_place(self, write: Callable[[Mapping[str, Any]], None]) -> None:
        """`write` was given the modules by name, and says by returning that it wrote every one."""
        with torch.no_grad():
            write(self.modules())
        self._pushed |= {
            parameter.data_ptr() for module in self.modules().values() for parameter in module.parameters()
        }

    def end_push(self, version: str) -> None:
        """Everything was written; Refused names what was not."""
        missing = loading.unwritten(self.modules(), self._pushed)
        if missing:
            raise Refused(f"nothing was pushed to {listed(missing)}; they hold what nobody vouches for")
        self.synchronize()
        self.version = version

    def checksum(self) -> str:
        """One checksum of all modules, without the KV caches that they hold."""
        return _checksum_of(leaf for leaf in leaves(self.modules()) if leaf.has_bytes and not self.is_kv(leaf.tensor))

    def modules(self) -> dict[str, Any]:
        """The modules by name, whatever tag they lie in."""
        return {name: owner for owners in self.owners.values() for name, owner in owners.items()}

    def _replace(self) -> None:
        self._pushed.clear()
        self.version = None
        for staging in self.every_staging():
            staging.clear()

    # what it holds

    def expected_bytes(self, tag: Tag) -> int:
        """What a release of the tag should give back: its regions, and modules that were built outside them."""
        return self.tags.bytes(tag) + sum(span.size for span in spans(self.outside(tag)))

    def host_bytes(self, effect: str, tag: Tag) -> int:
        """Host memory that this effect on the tag would take beyond what is there from the last time."""
        match effect:
            case "stage":
                return self.stagings[tag].needed_bytes()
            case "stage_buffers":
                return self.buffers[tag].needed_bytes()
            case "release":
                return self.tags.host_bytes(tag)
        return 0

    def outside(self, tag: Tag) -> list[Leaf]:
        """The tensors that should lie in the tag's memory, and lie in no region."""
        device = self.tags.backend.device.type
        found = (leaf for leaf in leaves(self.owners.get(tag, {})) if leaf.has_bytes)
        return [leaf for leaf in found if leaf.tensor.device.type == device and self.tags.tag_of(leaf.tensor) is None]

    def is_kv(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor lies in a region of the KV stage, and so is never staged."""
        tag = self.tags.tag_of(tensor)
        return tag is not None and self.tags.stage(tag) == "kv"


def modules_checksum(modules: Owners) -> str:
    """One checksum of every parameter and buffer: equal for equal modules, on whatever device they are."""
    return _checksum_of(leaves(modules))


def _checksum_of(found: Iterable[Leaf]) -> str:
    return combined(checksums(sorted(spans(found), key=lambda span: span.names)))
