"""What `import lifecycle` gives; the package imports this module when a name of it is first asked for."""

from ..core.advice import Advice, Choice, Recovery
from ..core.agreement import RankOutcome
from ..core.calls import Call, Reply
from ..core.capabilities import Capabilities, PauseTraits
from ..core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from ..core.errors import (
    AgreementError,
    AgreementLost,
    CommandRefused,
    ConfigurationError,
    DeadlineExceeded,
    EngineBusy,
    EngineHeld,
    FleetError,
    GuardRefused,
    InvalidTransition,
    LifecycleError,
    NotProved,
    OperationFailed,
    PlansDiffer,
    Preempted,
    RankFailed,
    RankMissing,
    Rejected,
    Unreachable,
)
from ..core.facts import Contents, Fact, Facts, Grade, PauseMode, TagSpec
from ..core.observation import Observation, Probe
from ..core.observer import BaseObserver, MoveEvent, Observer
from ..core.policy import DEADLINES_S, PAUSE_MODE, Policy
from ..core.ports import Agreement, EngineAdapter, ResidualProbe, Router, StateStore
from ..core.readings import Process
from ..core.record import Record
from ..core.replies import CallReply
from ..core.sources import FromDisk, Kept, Pushed, PushTarget, Source
from ..core.states import RING, State
from ..core.transition import Transition
from ..core.verdicts import Condition, NotApplicable, Pending, Proved, Refuted, Unmeasurable, Verdict
from ..engine.engine import Engine
from ..launch.miles import apply_offload_defaults, parse_env_positive_float
from ..nodes.hook_mode import HookModeUnsafe, require_safe_hook_mode, resolve_hook_mode
from .fleet import Fleet
from .groups import Group
from .plans import GroupPlan
from .window import Window

__all__ = [
    "DEADLINES_S",
    "PAUSE_MODE",
    "RING",
    "Advice",
    "Agreement",
    "AgreementError",
    "AgreementLost",
    "BaseObserver",
    "Call",
    "CallReply",
    "Capabilities",
    "Choice",
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
    "EngineHeld",
    "Fact",
    "Facts",
    "Fleet",
    "FleetError",
    "FromDisk",
    "Grade",
    "Group",
    "GroupPlan",
    "GuardRefused",
    "HookModeUnsafe",
    "InvalidTransition",
    "Kept",
    "LifecycleError",
    "MoveEvent",
    "NotApplicable",
    "NotProved",
    "Observation",
    "Observer",
    "OperationFailed",
    "Pause",
    "PauseMode",
    "PauseTraits",
    "Pending",
    "PlansDiffer",
    "Policy",
    "Preempted",
    "Probe",
    "Process",
    "Proved",
    "PushTarget",
    "Pushed",
    "RankFailed",
    "RankMissing",
    "RankOutcome",
    "Record",
    "Recovery",
    "Refuted",
    "Rejected",
    "Release",
    "Reply",
    "ResidualProbe",
    "RestoreKV",
    "RestoreWeights",
    "Resume",
    "Router",
    "Source",
    "State",
    "StateStore",
    "TagSpec",
    "Transition",
    "Unmeasurable",
    "Unreachable",
    "UpdateWeights",
    "Verdict",
    "Window",
    "apply_offload_defaults",
    "parse_env_positive_float",
    "require_safe_hook_mode",
    "resolve_hook_mode",
]
