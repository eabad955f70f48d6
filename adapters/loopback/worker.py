"""One rank: its memory regions, its layers of the model, and the calls that the scheduler makes to it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from lifecycle.core.units import MIB

from .checkpoint import BadCheckpoint, blob_offsets, open_checkpoint
from .memory import MemorySaver, NoSaver, Region, Saver
from .model import Choice, Chunk, Floats, Shard
from .shape import FLOAT_BYTES, HIDDEN, PAGE_TOKENS, ModelShape, RankConfig, layers_of, nbytes

_ALIGNMENT = 64
ILLEGAL_ACCESS = "CUDA error: an illegal memory access was encountered"


class RankWorker:
    """A rank. Its memory is resident from the start, and its weights are zero until `load`."""

    def __init__(self, config: RankConfig) -> None:
        self._rank = config.rank
        self._shape = ModelShape.filling(config.weights_mib)
        self._tensors = self._shape.of_rank(config.rank, config.ranks)
        self._offsets, size = _layout([nbytes(shape) for shape in self._tensors.values()])
        self._regions = {"weights": Region(size), "kv_cache": Region(config.kv_mib * MIB // config.ranks)}
        self._weights = dict(zip(self._tensors, map(self._tensor, range(len(self._tensors))), strict=True))
        layers = layers_of(config.rank, config.ranks)
        self._shard = Shard(self._weights, _kv_view(self._regions["kv_cache"], len(layers)), layers)
        self._saver = self._make_saver(config)
        self._faults_when_unmapped = config.faults_when_unmapped
        self._broken = ""  # why the next forward pass fails; "" where it does not

    def _tensor(self, index: int) -> Floats:
        shape = list(self._tensors.values())[index]
        raw = self._regions["weights"].buffer(self._offsets[index], nbytes(shape))
        return np.frombuffer(raw, dtype=np.float32).reshape(shape)

    def _make_saver(self, config: RankConfig) -> Saver:
        if not config.memory_saver:
            return NoSaver()
        backed_up = frozenset({"weights"} if config.weights_backup else ())
        return MemorySaver(self._regions, backed_up=backed_up)

    def forward(self, chunks: Sequence[Chunk], hidden: Sequence[Floats | None]) -> list[Floats | Choice | None]:
        """Each row's hidden states, or from the last rank its next token. Rows are computed one by one."""
        if self._broken:
            raise RuntimeError(self._broken)
        if self._faults_when_unmapped and self._saver.paused():
            raise RuntimeError(ILLEGAL_ACCESS)
        return [self._shard.forward(chunk, state) for chunk, state in zip(chunks, hidden, strict=True)]

    def release(self, tag: str, keep_bytes: Sequence[int], backup: bool = True) -> None:  # [ranks]
        """Returns the tag's pages to the operating system, except this rank's `keep_bytes`."""
        self._saver.pause(tag, keep_bytes=keep_bytes[self._rank], backup=backup)

    def resume(self, tag: str, zeros: bool) -> None:
        """Makes the tag's pages resident. With `zeros` a backup is not read back."""
        self._saver.resume(tag, zeros=zeros)

    def load(self, path: str) -> str | None:
        """Reads this rank's tensors from the checkpoint. Returns why it is invalid, and reads nothing then, or None."""
        try:
            checkpoint = open_checkpoint(path, self._shape)
        except BadCheckpoint as error:
            return str(error)
        for name, tensor in self._weights.items():
            checkpoint.read(name, tensor.data.cast("B"))
        return None

    def reload(self, path: str) -> str | None:
        """Reads this rank's tensors in place. Where that fails, returns why, and the next forward pass fails.

        Source: vllm 0.32.0, model_executor/model_loader/reload/layerwise.py: the parameters are on the device `meta`
        from the beginning of a reload to its end. Measured: a reload that failed on the way left them there.
        """
        if unmapped := self._unmapped():
            return unmapped
        reason = self.load(path)
        self._broken = f"Tensor on device meta is not on the expected device ({reason})" if reason else ""
        return reason

    def push(self, blob: bytes) -> str | None:
        """`load_blob`, or why the memory of the weights cannot be written."""
        if unmapped := self._unmapped():
            return unmapped
        self.load_blob(blob)
        return None

    def _unmapped(self) -> str | None:
        """Why the weights cannot be touched: they are not mapped. On a device that breaks the context for good."""
        if self._faults_when_unmapped and "weights" in self._saver.paused():
            self._broken = ILLEGAL_ACCESS
        return self._broken if self._broken == ILLEGAL_ACCESS else None

    def load_blob(self, blob: bytes) -> None:
        """Copies those tensors of a validated safetensors blob that this rank holds."""
        offsets = blob_offsets(blob, self._shape)
        for name in offsets.keys() & self._weights.keys():
            target = self._weights[name].data.cast("B")
            target[:] = memoryview(blob)[offsets[name] : offsets[name] + len(target)]

    def checksums(self) -> dict[str, str]:
        """The SHA-256 of each tensor's bytes."""
        return {name: hashlib.sha256(tensor.data.cast("B")).hexdigest() for name, tensor in self._weights.items()}

    def reset_tensors(self) -> None:
        """Overwrites every tensor with zeros."""
        for tensor in self._weights.values():
            tensor.fill(0)


def _layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """The aligned offset of each tensor in the region, and the region's size."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def _kv_view(region: Region, layers: int) -> Floats:
    pages = region.size // (layers * 2 * PAGE_TOKENS * HIDDEN * FLOAT_BYTES)
    floats = region.bytes.view(np.float32)[: layers * 2 * pages * PAGE_TOKENS * HIDDEN]
    return floats.reshape(layers, 2, pages, PAGE_TOKENS, HIDDEN)
