"""An engine that is a torch model in this process: its memory in regions, released by torch_memory_saver on CUDA and
by the operating system on a CPU; its weights staged in host memory meanwhile; a trainer as another such tenant.

Source for everything about the saver: torch_memory_saver 0.0.10, read.
"""

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

try:
    import torch as _torch
except ModuleNotFoundError as missing:
    raise MissingPackage("an engine in this process needs torch; pip install 'engine-lifecycle[torch]'") from missing
if not hasattr(_torch, "Tensor"):  # a folder called torch on the path
    raise MissingPackage("an engine in this process needs torch; pip install 'engine-lifecycle[torch]'")

from .adapter import TorchAdapter
from .engine import TorchEngine
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
