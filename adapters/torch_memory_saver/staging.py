"""Host staging: the bytes of modules are kept in host memory while their device memory is released.

Every parameter and buffer of the modules is staged, and memory that tensors share is staged once. A restore writes each
byte back to its address. It then discards the staged copy, so that a later restore cannot overwrite newer weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from .checksum import checksums
from .errors import ModulesChanged, Refused, StagingCorrupt
from .host_memory import SLAB_BYTES, HostBudget, HostBuffers
from .identity import Identity, changes, identities
from .tensors import Leaf, Modules, Span, leaves, spans

#: Every span begins at a multiple of this many bytes in the host buffers, as torch aligns allocations on a device.
_ALIGN = 256


@dataclass(frozen=True, slots=True)
class Copied:
    """What a stage or a restore copied. `checksum` has one sum for each span; None where checksums are off."""

    bytes: int
    spans: int
    seconds: float
    checksum: tuple[int, ...] | None = None

    @property
    def gb_per_s(self) -> float:
        """Gigabytes (10^9) per second."""
        return self.bytes / self.seconds / 1e9 if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class _Piece:
    """`size` bytes at `offset` of a span, and their place `at` in a host buffer. `span` and `slab` are indices."""

    span: int
    offset: int
    slab: int
    at: int
    size: int


@dataclass(frozen=True, slots=True)
class _Staged:
    """What the host buffers hold. The spans keep the storages alive, so that their addresses are not used again."""

    spans: tuple[Span, ...]
    pieces: tuple[_Piece, ...]
    identities: dict[str, Identity]
    checksum: tuple[int, ...] | None


class HostStaging:
    """Stages the tensors of `modules` (modules, optimizers or mappings of tensors, by name), and restores them.

    `exclude` is true of tensors that must not be staged, such as KV caches that a module holds as buffers. With
    `checksum`, every restore compares the restored bytes, summed on the device, with the staged ones, and raises
    StagingCorrupt where they differ. Several stagings may share one `budget`.
    """

    def __init__(
        self,
        modules: Modules,
        *,
        budget: HostBudget | None = None,
        checksum: bool = False,
        exclude: Callable[[torch.Tensor], bool] | None = None,
        slab_bytes: int = SLAB_BYTES,
    ) -> None:
        self._modules = modules
        self._exclude = exclude
        self._checksum = checksum
        self._buffers = HostBuffers(budget or HostBudget(), slab_bytes=slab_bytes)
        self._staged: _Staged | None = None
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    @property
    def holds(self) -> bool:
        """Whether a staged copy waits to be restored."""
        return self._staged is not None

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory that its buffers occupy. They are kept from release to release."""
        return self._buffers.held_bytes

    def needed_bytes(self) -> int:
        """Bytes of host memory that a stage would allocate now, beyond its buffers."""
        found = self._spans()
        return self._buffers.short_bytes(_layout_bytes(found), pinned=_on_cuda(found))

    def stage(self) -> Copied:
        """Copies the bytes of every tensor to host memory.

        Raises HostMemoryShort or CannotStage before anything is copied.
        """
        begun = time.perf_counter()
        found = self._spans()
        self._buffers.ensure(_layout_bytes(found), pinned=_on_cuda(found))
        pieces = tuple(_layout(found, [slab.size for slab in self._buffers.slabs]))
        _synchronize(found)
        sums = self._sums(found)
        self._copy(found, pieces, to_host=True)
        self._staged = _Staged(tuple(found), pieces, identities(self._modules), sums)
        return Copied(sum(span.size for span in found), len(found), time.perf_counter() - begun, sums)

    def changes(self) -> list[str]:
        """A description of each tensor that was moved, resized or replaced since the stage."""
        return changes(self._staged.identities, identities(self._modules)) if self._staged else []

    def restore(self) -> Copied:
        """Copies the staged bytes back into every tensor and discards the staged copy.

        Raises ModulesChanged, before anything is copied, where a tensor was moved, resized or replaced. Raises
        StagingCorrupt, after the copy, where checksums differ.
        """
        begun = time.perf_counter()
        staged = self._staged
        if staged is None:
            raise Refused("nothing is staged; a copy is discarded once restored, and when newer weights are loaded")
        changed = self.changes()
        if changed:
            raise ModulesChanged(changed)
        self._copy(staged.spans, staged.pieces, to_host=False)
        sums = self._sums(staged.spans)
        self.clear()
        _compare(staged.spans, staged.checksum, sums)
        return Copied(sum(span.size for span in staged.spans), len(staged.spans), time.perf_counter() - begun, sums)

    def clear(self) -> None:
        """Discards the staged copy; the buffers stay for the next release."""
        self._staged = None

    def close(self) -> None:
        """Discards the staged copy and frees the buffers."""
        self.clear()
        self._buffers.close()

    def staged_leaves(self) -> Iterator[Leaf]:
        """The tensors that a stage covers, under each of their names, meta and empty ones included."""
        for leaf in leaves(self._modules):
            if not (leaf.has_bytes and self._exclude is not None and self._exclude(leaf.tensor)):
                yield leaf

    def _spans(self) -> list[Span]:
        """The spans to stage, the largest first: its copy runs while the copies of the small ones are queued."""
        return sorted(spans(self.staged_leaves()), key=lambda span: -span.size)

    def _sums(self, found: Sequence[Span]) -> tuple[int, ...] | None:
        return tuple(checksums(found)) if self._checksum else None

    def _copy(self, found: Sequence[Span], pieces: Sequence[_Piece], *, to_host: bool) -> None:
        with ExitStack() as opened:
            host = [opened.enter_context(slab.open()) for slab in self._buffers.slabs]
            for device in {span.device for span in found}:
                mine = [piece for piece in pieces if found[piece.span].device == device]
                with self._stream(device):
                    _copy_pieces(found, mine, host, to_host)

    @contextmanager
    def _stream(self, device: torch.device) -> Iterator[None]:
        """A context in which copies use a stream of their own on this device; on leaving it they have ended."""
        if device.type != "cuda":
            yield
            return
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        with torch.cuda.stream(self._streams[device]):
            yield
        self._streams[device].synchronize()


def _copy_pieces(found: Sequence[Span], pieces: Sequence[_Piece], host: Sequence[torch.Tensor], to_host: bool) -> None:
    for piece in pieces:
        device_side = found[piece.span].bytes(piece.offset, piece.size)
        host_side = host[piece.slab][piece.at : piece.at + piece.size]
        if to_host:
            host_side.copy_(device_side, non_blocking=True)
        else:
            device_side.copy_(host_side, non_blocking=True)


def _layout_bytes(found: Sequence[Span]) -> int:
    return sum(-(-span.size // _ALIGN) * _ALIGN for span in found)


def _layout(found: Sequence[Span], slab_sizes: Sequence[int]) -> Iterator[_Piece]:
    """Lays the spans out one after another over the slabs. A span is cut where a slab ends."""
    slab, at = 0, 0
    for index, span in enumerate(found):
        offset = 0
        while offset < span.size:
            if at >= slab_sizes[slab]:
                slab, at = slab + 1, 0
                continue
            size = min(span.size - offset, slab_sizes[slab] - at)
            yield _Piece(index, offset, slab, at, size)
            offset, at = offset + size, -(-(at + size) // _ALIGN) * _ALIGN


def _on_cuda(found: Sequence[Span]) -> bool:
    return any(span.device.type == "cuda" for span in found)


def _synchronize(found: Sequence[Span]) -> None:
    """Waits until everything queued on the spans' devices has run, so that the latest values are copied."""
    for device in {span.device for span in found if span.device.type == "cuda"}:
        torch.cuda.synchronize(device)


def _compare(found: Sequence[Span], before: tuple[int, ...] | None, after: tuple[int, ...] | None) -> None:
    if before is None or after is None:
        return
    wrong = [name for span, was, now in zip(found, before, after, strict=True) if was != now for name in span.names]
    if wrong:
        raise StagingCorrupt(wrong)
