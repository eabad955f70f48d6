"""Checkpoints: safetensors files, generated from a seed, validated before they are read, and read into a region."""

from __future__ import annotations

import io
import json
import os
import stat
import struct
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lifecycle.core.units import MIB

from .memory import read_into
from .shape import VOCABULARY, ModelShape, Shape, nbytes

Floats = NDArray[np.float32]

_HEADER_LIMIT = 16 * MIB
_BLOCK_FLOATS = 1 << 20
_PRINTABLE = range(32, 127)
_NEVER = -1e4  # a bias that keeps a token from being the argmax


class BadCheckpoint(ValueError):
    """The file is not a checkpoint of this model; nothing was loaded."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A validated file, and the offset of each tensor's bytes in it."""

    path: Path
    offsets: Mapping[str, int]

    def read(self, name: str, target: memoryview) -> None:
        """Reads the tensor's bytes into `target`."""
        with self.path.open("rb", buffering=0) as file:
            read_into(file.fileno(), target, self.offsets[name])


def open_checkpoint(path: str, shape: ModelShape) -> Checkpoint:
    """The checkpoint at `path`. Raises BadCheckpoint where it does not have exactly this model's tensors."""
    file = _file_of(Path(path))
    try:
        with file.open("rb") as handle:
            header, start = _read_header(handle)
            size = os.fstat(handle.fileno()).st_size
    except OSError as error:
        raise BadCheckpoint(f"Failed to load weights from {path}: {error.strerror or error}") from error
    return Checkpoint(file, _offsets(header, shape.tensors(), start, size))


def blob_offsets(blob: bytes, shape: ModelShape) -> dict[str, int]:
    """The offset of each tensor in a safetensors blob. Raises BadCheckpoint where one is not this model's."""
    header, start = _read_header(io.BytesIO(blob))
    return _offsets(header, shape.tensors(), start, len(blob), partial=True)


def blob_of(tensors: Mapping[str, Floats]) -> bytes:
    """A safetensors blob of these tensors."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return _header(shapes, {"format": "loopback"}) + b"".join(tensor.tobytes() for tensor in tensors.values())


def _offsets(
    header: Mapping[str, Any], expected: Mapping[str, Shape], start: int, size: int, *, partial: bool = False
) -> dict[str, int]:
    found = {name: entry for name, entry in header.items() if name != "__metadata__"}
    _check_names(found.keys(), expected.keys(), partial=partial)
    return {name: start + _begin(name, entry, expected[name], size - start) for name, entry in found.items()}


def _parse_header(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise BadCheckpoint(f"not a safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise BadCheckpoint("not a safetensors file: the header is not an object")
    return header


def _file_of(path: Path) -> Path:
    return path / "model.safetensors" if path.is_dir() else path


def _read_header(handle: IO[bytes]) -> tuple[dict[str, Any], int]:
    head = handle.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 2 <= length <= _HEADER_LIMIT:
        raise BadCheckpoint("not a safetensors file: the header's length is implausible")
    return _parse_header(handle.read(length)), 8 + length


def _check_names(found: Any, expected: Any, *, partial: bool) -> None:
    unknown, missing = sorted(found - expected), sorted(expected - found)
    if unknown:
        raise BadCheckpoint(f"unknown tensor {unknown[0]!r}")
    if missing and not partial:
        raise BadCheckpoint(f"tensor {missing[0]!r} is missing")


def _begin(name: str, entry: Any, expected: Shape, available: int) -> int:
    if not isinstance(entry, dict) or entry.get("dtype") != "F32":
        raise BadCheckpoint(f"tensor {name!r} is not float32")
    if entry.get("shape") != list(expected):
        raise BadCheckpoint(f"tensor {name!r} has shape {entry.get('shape')}, this model needs {list(expected)}")
    begin, end = _extent(entry.get("data_offsets"))
    if end - begin != nbytes(expected) or begin < 0 or end > available:
        raise BadCheckpoint(f"tensor {name!r} does not lie inside the file")
    return begin


def _extent(offsets: Any) -> tuple[int, int]:
    match offsets:
        case [int(begin), int(end)]:
            return begin, end
    raise BadCheckpoint("a tensor has no data_offsets")


def make_weights(path: str | Path, *, seed: int, weights_mib: int) -> Path:
    """Writes a checkpoint of `weights_mib` to `path` and returns that. The same seed gives the same bytes."""
    target = Path(path)
    shape = ModelShape.filling(weights_mib)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=target.name, delete=False) as file:
        try:
            file.write(_header(shape.tensors(), {"format": "loopback", "seed": str(seed)}))
            for tensor in _random_tensors(shape, np.random.default_rng(seed)):
                file.write(tensor.data.cast("B"))
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise
    return target


def cached_weights(*, seed: int, weights_mib: int) -> Path:
    """A checkpoint of this seed and size in the user's own temporary folder; written where it does not exist."""
    path = _cache() / f"loopback-seed{seed}-{weights_mib}MiB-v1.safetensors"
    if not path.exists():
        make_weights(path, seed=seed, weights_mib=weights_mib)
    return path


def _cache() -> Path:
    folder = Path(tempfile.gettempdir()) / f"loopback-weights-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    # Another user may have created a folder of that name, and could replace the checkpoints in it.
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise OSError(f"{folder} belongs to another user")
    return folder


def _header(tensors: Mapping[str, Shape], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in tensors.items():
        begin, end = end, end + nbytes(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 64)
    return struct.pack("<Q", len(raw)) + raw


def _random_tensors(shape: ModelShape, rng: np.random.Generator) -> Iterator[Floats]:
    """The tensors in the order of the file; the large ones in several blocks."""
    block = rng.standard_normal(_BLOCK_FLOATS, dtype=np.float32)
    for name, extents in shape.tensors().items():
        if name.endswith("ngram_table"):
            yield from _tiles(block, nbytes(extents) // 4, int(rng.integers(_BLOCK_FLOATS)))
        else:
            yield _small_tensor(name, extents, rng)


def _tiles(block: Floats, count: int, phase: int) -> Iterator[Floats]:
    # Drawing 192 MiB of random numbers takes seconds, so all tables are made of one block. It is rotated by another
    # offset in each tile, so that no two rows are equal.
    for tile in range(0, count, block.size):
        yield np.roll(block, phase + 7919 * (tile // block.size))[: count - tile]


def _small_tensor(name: str, extents: Shape, rng: np.random.Generator) -> Floats:
    if name.endswith("norm"):
        return np.ones(extents, dtype=np.float32)
    if name == "lm_head_bias":
        return _printable_bias()
    scale = 1.0 if name == "embed_tokens" else extents[0] ** -0.5
    return rng.standard_normal(extents, dtype=np.float32) * np.float32(scale)


def _printable_bias() -> Floats:
    bias = np.full(VOCABULARY, _NEVER, dtype=np.float32)
    bias[list(_PRINTABLE)] = 0.0
    return bias
