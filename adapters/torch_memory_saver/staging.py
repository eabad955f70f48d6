"""Host staging: the bytes of modules wait in host memory while their device memory is given back.

Every parameter and buffer of the owners is staged, tied and shared memory once, and comes back byte for byte to where
it was. What was staged is forgotten as soon as it has come back, so that it can never overwrite newer weights.
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
from .tensors import Leaf, Owners, Span, leaves, spans

#: Every span begins at a multiple of this in the host buffers, as in device memory.
_ALIGN = 256


@dataclass(frozen=True, slots=True)
class Copied:
    """What one direction of a staging did. `checksum` is None where none was asked for."""

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
    """`size` bytes at `offset` of a span, and where in the host buffers they wait."""

    span: int
    offset: int
    slab: int
    at: int
    size: int


@dataclass(frozen=True, slots=True)
class _Staged:
    """What waits in the host buffers. The spans keep the storages alive, so that no address can change hands."""

    spans: tuple[Span, ...]
    pieces: tuple[_Piece, ...]
    were: dict[str, Identity]
    checksum: tuple[int, ...] | None


class HostStaging:
    """Stages the tensors of `owners` (modules, optimizers, or tensors, by name), and restores them.

    `exclude` says of a tensor that it must not be staged (KV caches that a module holds as buffers). `checksum`:
    every restore compares what came back, summed on the device, and raises StagingCorrupt. `budget` may be shared by
    several stagings.
    """

    def __init__(
        self,
        owners: Owners,
        *,
        budget: HostBudget | None = None,
        checksum: bool = False,
        exclude: Callable[[torch.Tensor], bool] | None = None,
        slab_bytes: int = SLAB_BYTES,
    ) -> None:
        self._owners = owners
        self._exclude = exclude
        self._checksum = checksum
        self._buffers = HostBuffers(budget or HostBudget(), slab_bytes=slab_bytes)
        self._staged: _Staged | None = None
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    @property
    def holds(self) -> bool:
        """Whether something waits to be restored."""
        return self._staged is not None

    @property
    def host_bytes(self) -> int:
        """Host memory that its buffers take, between cycles too."""
        return self._buffers.held_bytes

    def needed_bytes(self) -> int:
        """Host memory that a stage now would take beyond what its buffers have."""
        found = self._spans()
        return self._buffers.short_bytes(_layout_bytes(found), pinned=_on_cuda(found))

    def stage(self) -> Copied:
        """The bytes of every tensor are in host memory too. Raises HostMemoryShort or CannotStage, nothing touched."""
        begun = time.perf_counter()
        found = self._spans()
        self._buffers.ensure(_layout_bytes(found), pinned=_on_cuda(found))
        pieces = tuple(_layout(found, [slab.size for slab in self._buffers.slabs]))
        _synchronize(found)
        sums = self._sums(found)
        self._copy(found, pieces, to_host=True)
        self._staged = _Staged(tuple(found), pieces, identities(self._owners), sums)
        return Copied(sum(span.size for span in found), len(found), time.perf_counter() - begun, sums)

    def changes(self) -> list[str]:
        """The tensors that are not what was staged, in words."""
        return changes(self._staged.were, identities(self._owners)) if self._staged else []

    def restore(self) -> Copied:
        """Every tensor holds the bytes that were staged, and those are forgotten.

        Raises ModulesChanged, nothing touched, where a tensor was moved, resized or replaced; StagingCorrupt.
        """
        begun = time.perf_counter()
        staged = self._staged
        if staged is None:
            raise Refused("nothing is staged; what was has been restored or was given up for newer weights")
        changed = self.changes()
        if changed:
            raise ModulesChanged(changed)
        self._copy(staged.spans, staged.pieces, to_host=False)
        sums = self._sums(staged.spans)
        self.clear()
        _compare(staged.spans, staged.checksum, sums)
        return Copied(sum(span.size for span in staged.spans), len(staged.spans), time.perf_counter() - begun, sums)

    def clear(self) -> None:
        """What was staged is forgotten; the buffers stay for the next cycle."""
        self._staged = None

    def close(self) -> None:
        """What was staged is forgotten and the buffers' memory is the host's again."""
        self.clear()
        self._buffers.close()

    def staged_leaves(self) -> Iterator[Leaf]:
        """The tensors that a stage covers, under every name; meta and empty ones too."""
        for leaf in leaves(self._owners):
            if not (leaf.has_bytes and self._exclude is not None and self._exclude(leaf.tensor)):
                yield leaf

    def _spans(self) -> list[Span]:
        """Large ones first: while they are copied, the copies of the small ones are queued."""
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
        """Inside, copies of this device go over a stream of their own, and after it they have ended."""
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
    """The spans one after another through the slabs, cut where a slab ends."""
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
    """Everything that was queued on the devices has run: what is copied is what was written last."""
    for device in {span.device for span in found if span.device.type == "cuda"}:
        torch.cuda.synchronize(device)


def _compare(found: Sequence[Span], before: tuple[int, ...] | None, after: tuple[int, ...] | None) -> None:
    if before is None or after is None:
        return
    wrong = [name for span, was, now in zip(found, before, after, strict=True) if was != now for name in span.names]
    if wrong:
        raise StagingCorrupt(wrong)
