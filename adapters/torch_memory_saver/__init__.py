"""An engine that is a torch model in this process, and a trainer beside it.

Memory is allocated in regions. On CUDA torch_memory_saver releases them; on a CPU their pages are returned to the
operating system. Weights are staged in host memory during a release. Each engine and each trainer is a tenant: several
may share one process and one device.

Source for every claim about the saver: torch_memory_saver 0.0.10, read.
"""

from . import requirements as requirements  # first: it names a package that is missing
from .adapter import TorchAdapter
from .engine import TorchEngine
from .errors import (
    CannotStage,
    HostMemoryShort,
    MissingPackage,
    ModulesChanged,
    Refused,
    RegionRefused,
    StagingCorrupt,
    TorchEngineError,
)
from .gate import Gate, GateClosed, InFlight
from .host_memory import HostBudget
from .staging import Copied, HostStaging
from .tenant import Hooks, modules_checksum
from .trainer import Trainer

__all__ = [
    "CannotStage",
    "Copied",
    "Gate",
    "GateClosed",
    "Hooks",
    "HostBudget",
    "HostMemoryShort",
    "HostStaging",
    "InFlight",
    "MissingPackage",
    "ModulesChanged",
    "Refused",
    "RegionRefused",
    "StagingCorrupt",
    "TorchAdapter",
    "TorchEngine",
    "TorchEngineError",
    "Trainer",
    "modules_checksum",
]
