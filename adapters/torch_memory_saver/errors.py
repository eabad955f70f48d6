"""Errors of the engine in this process, split by whether anything was changed before the error.

TorchEngineError
  Refused                   nothing was changed
    RegionRefused           the region may not be opened, released or restored now
    ModulesChanged          .changes: tensors were moved, resized or replaced since the release
    HostMemoryShort         .needed_bytes .allowed_bytes
    CannotStage             the bytes of a tensor cannot be read
  StagingCorrupt            .names: the restored bytes are not the staged ones
MissingPackage              torch, torch_memory_saver or another needed package is not installed
"""

from __future__ import annotations

from collections.abc import Sequence

from lifecycle.core.errors import ConfigurationError
from lifecycle.core.units import MIB

#: Names that a message lists before it only counts the rest.
_SHOWN = 5


class TorchEngineError(RuntimeError):
    """A call in this process failed."""


class Refused(TorchEngineError):
    """A call was refused before it changed anything."""


class RegionRefused(Refused):
    """The region may not be opened, released or restored in its present state."""


class ModulesChanged(Refused):
    """Tensors of a released tag have changed since the release; `changes` describes each change."""

    def __init__(self, changes: Sequence[str]) -> None:
        self.changes = tuple(changes)
        super().__init__(f"since the release {listed(changes)}; restore what was there, or attach the modules anew")


class HostMemoryShort(Refused):
    """The host buffers would exceed their budget or the host's free memory; none was allocated."""

    def __init__(self, needed_bytes: int, allowed_bytes: int, why: str) -> None:
        self.needed_bytes = needed_bytes
        self.allowed_bytes = allowed_bytes
        needed, allowed = mib_rounded_up(needed_bytes), mib_rounded_up(allowed_bytes)
        super().__init__(f"staging needs {needed} more of host memory and {allowed} {why}")


class CannotStage(Refused):
    """The bytes of a tensor cannot be read; the message names the tensor."""


class StagingCorrupt(TorchEngineError):
    """The restored bytes differ from the staged ones; `names` are the tensors in that memory."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        super().__init__(f"the checksum after the restore differs for {listed(names)}")


class MissingPackage(ConfigurationError, ImportError):
    """A package that this adapter needs is not installed; the message says what to install."""


def mib_rounded_up(size_bytes: int) -> str:
    """A size in whole mebibytes, rounded up, so that no size but 0 is written as 0 MiB."""
    return f"{-(-size_bytes // MIB)} MiB"


def listed(names: Sequence[str]) -> str:
    """The first names, and the number of the rest."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
