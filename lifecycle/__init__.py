"""The offload and onload lifecycle of inference engines: a state is a claim, entered only on evidence.

async with Fleet.connect(["sglang://127.0.0.1:30000"]) as fleet:
    async with fleet.offloaded(weights=FromDisk(path, version="step-12")):
        train()
"""

from .adapter import Call, Capabilities, EngineAdapter, Observation, PauseTraits, Probe, Process, Reply
from .commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from .config import DEADLINES_S, PAUSE_MODE, Policy
from .engine import Engine
from .environment import apply_offload_defaults, parse_env_positive_float
from .errors import (
    CommandRefused,
    ConfigurationError,
    DeadlineExceeded,
    EngineBusy,
    FleetError,
    GuardRefused,
    InvalidTransition,
    LifecycleError,
    NotProved,
    OperationFailed,
    Rejected,
    Unreachable,
)
from .events import BaseObserver, Observer, Transition
from .facts import Contents, Fact, Facts, Grade, PauseMode, TagSpec
from .fleet import Fleet
from .hook_mode import HookModeUnsafe, require_safe_hook_mode
from .members import Group
from .router import Router
from .states import RING, State
from .verdicts import Condition, NotApplicable, Pending, Proved, Refuted, Unmeasurable, Verdict
from .weights import FromDisk, Kept, Pushed, Source

__all__ = [
    "DEADLINES_S",
    "PAUSE_MODE",
    "RING",
    "BaseObserver",
    "Call",
    "Capabilities",
    "Command",
    "CommandRefused",
    "Condition",
    "ConfigurationError",
    "Contents",
    "DeadlineExceeded",
    "Drain",
    "Engine",
    "EngineAdapter",
    "EngineBusy",
    "Fact",
    "Facts",
    "Fleet",
    "FleetError",
    "FromDisk",
    "Grade",
    "Group",
    "GuardRefused",
    "HookModeUnsafe",
    "InvalidTransition",
    "Kept",
    "LifecycleError",
    "NotApplicable",
    "NotProved",
    "Observation",
    "Observer",
    "OperationFailed",
    "Pause",
    "PauseMode",
    "PauseTraits",
    "Pending",
    "Policy",
    "Probe",
    "Process",
    "Proved",
    "Pushed",
    "Refuted",
    "Rejected",
    "Release",
    "Reply",
    "RestoreKV",
    "RestoreWeights",
    "Resume",
    "Router",
    "Source",
    "State",
    "TagSpec",
    "Transition",
    "Unmeasurable",
    "Unreachable",
    "UpdateWeights",
    "Verdict",
    "apply_offload_defaults",
    "parse_env_positive_float",
    "require_safe_hook_mode",
]
