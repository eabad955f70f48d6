"""What goes wrong in this process, split by whether anything was touched.

TorchEngineError
  Refused                   nothing was touched
    RegionRefused           a region that may not be opened now
    ModulesChanged          .changes: tensors moved, resized or replaced since the release
    HostMemoryShort         .needed_bytes .allowed_bytes
    CannotStage             a tensor that has no bytes to copy
  StagingCorrupt            .names: what came back is not what was staged
MissingPackage              torch or torch_memory_saver is not installed
"""

from __future__ import annotations

from collections.abc import Sequence

from lifecycle.core.errors import ConfigurationError

_SHOWN = 5


class TorchEngineError(RuntimeError):
    """An effect in this process did not do what it says."""


class Refused(TorchEngineError):
    """Nothing was touched."""


class RegionRefused(Refused):
    """The region may not be opened, released or restored as things stand."""


class ModulesChanged(Refused):
    """Tensors are not those that were released; `changes` says of each what became of it."""

    def __init__(self, changes: Sequence[str]) -> None:
        self.changes = tuple(changes)
        super().__init__(f"since the release {listed(changes)}; restore what was there, or attach the modules anew")


class HostMemoryShort(Refused):
    """The host buffers would exceed what they may take; none was allocated."""

    def __init__(self, needed_bytes: int, allowed_bytes: int, why: str) -> None:
        self.needed_bytes = needed_bytes
        self.allowed_bytes = allowed_bytes
        super().__init__(f"staging needs {mib(needed_bytes)} more of host memory and {mib(allowed_bytes)} {why}")


class CannotStage(Refused):
    """A tensor whose bytes cannot be reached; the message names it."""


class StagingCorrupt(TorchEngineError):
    """The bytes that came back differ from those that were staged; `names` are the tensors in that memory."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        super().__init__(f"the checksum after the restore differs for {listed(names)}")


class MissingPackage(ConfigurationError, ImportError):
    """A package that this adapter needs is not installed; the message says what to install."""


def mib(size_bytes: int) -> str:
    """Bytes as MiB, rounded up, so that something is never called 0."""
    return f"{-(-size_bytes // (1 << 20))} MiB"


def listed(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
