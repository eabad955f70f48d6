"""The defaults, all in one place: deadlines, pause mode, thresholds, and how well each claim must be known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from .errors import ConfigurationError
from .facts import Grade, PauseMode
from .units import GIB, MIB

#: Seconds that a command may take, from the call to its return, settling included.
DEADLINES_S: Mapping[str, float] = {
    "pause": 60.0,
    "drain": 120.0,
    "release": 60.0,
    "restore_weights": 60.0,
    "update_weights": 600.0,
    "restore_kv": 60.0,
    "resume": 60.0,
}


#: What becomes of requests in flight unless something else is asked for.
PAUSE_MODE: PauseMode = "abort"


#: The least grade at which each claim may be entered, by the name of its proof or guard. Each of those adds its own
#: line (`lifecycle.rules.proofs`, `lifecycle.rules.guards`), so there is no other list of claims.
ACCEPT: dict[str, Grade] = {}


#: Resident bytes that an engine may keep after a release, beside the tags that stay mapped.
#: Source: miles, 1.81-1.83 GiB stay per engine (Qwen2.5-0.5B, RTX 5090, CUDA 12.9), mostly CUDA context.
RESIDUAL_THRESHOLD_GIB = 3.0


OnFailure = Literal["restore", "hold"]


def positive(name: str, value: float) -> float:
    """`value`, a finite number above 0; ConfigurationError names it otherwise."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise ConfigurationError(f"{name} must be a finite number > 0, got {value!r}")
    return float(value)


@dataclass(frozen=True, slots=True)
class Policy:
    """What an engine is held to. Times in seconds, sizes in GiB (`_gib`) or bytes (`_bytes`)."""

    residual_threshold_gib: float = RESIDUAL_THRESHOLD_GIB
    #: The share of the expected bytes that must come back.
    returned_fraction: float = 0.9
    #: An expectation under max(this, 5 % of resident) is too small to see in a process's memory.
    visible_bytes: int = 64 * MIB
    visible_fraction: float = 0.05
    pause_mode: PauseMode = PAUSE_MODE
    deadlines_s: Mapping[str, float] = field(default_factory=dict)
    accept: Mapping[str, Grade] = field(default_factory=dict)
    #: What to do at connect about an engine that can never give the evidence asked for.
    unprovable: Literal["refuse", "warn"] = "refuse"
    #: What to do at connect where no lease can be taken, since its holder cannot be asked.
    unleased: Literal["refuse", "warn"] = "refuse"
    on_failure: OnFailure = "restore"
    #: Time kept back from every deadline for finding out where a failed command left the engine.
    settle_s: float = 5.0
    poll_s: float = 0.1
    #: What counts as an engine's: what its processes hold, or all that is used of its devices by anybody.
    residual_scope: Literal["process", "device"] = "process"
    #: Seconds for which a residual must not have fallen before it is believed; 0 believes the first figure.
    residual_stable_s: float = 0.0
    #: Seconds to wait for room before a restore: a trainer frees late.
    room_wait_s: float = 30.0
    #: Greedy tokens that a version of the weights is remembered by, and asked for at every resume; 0 remembers none.
    canary_tokens: int = 0

    def __post_init__(self) -> None:
        positive("residual_threshold_gib", self.residual_threshold_gib)
        positive("settle_s", self.settle_s)
        positive("poll_s", self.poll_s)
        if self.on_failure not in get_args(OnFailure):
            raise ConfigurationError(f"on_failure {self.on_failure!r}: one of {', '.join(get_args(OnFailure))}")
        if self.unleased not in ("refuse", "warn"):
            raise ConfigurationError(f"unleased {self.unleased!r}: one of refuse, warn")
        positive("room_wait_s", self.room_wait_s)
        if not math.isfinite(self.residual_stable_s) or self.residual_stable_s < 0:
            raise ConfigurationError(f"residual_stable_s must be a finite number >= 0, got {self.residual_stable_s!r}")
        if self.residual_scope not in ("process", "device"):
            raise ConfigurationError(f"residual_scope must be one of process, device, got {self.residual_scope!r}")
        if self.canary_tokens < 0:
            raise ConfigurationError(f"canary_tokens must be >= 0, got {self.canary_tokens!r}")
        for known, given, what in ((DEADLINES_S, self.deadlines_s, "command"), (ACCEPT, self.accept, "claim")):
            for name in given:
                if name not in known:
                    raise ConfigurationError(f"unknown {what} {name!r}: one of {', '.join(known)}")
        for name, deadline_s in self.deadlines_s.items():
            positive(f"the deadline of {name}", deadline_s)

    @property
    def threshold_bytes(self) -> int:
        """The residual threshold in bytes."""
        return round(self.residual_threshold_gib * GIB)

    def deadline_s(self, command: str, asked_s: float | None = None) -> float:
        """Seconds that this command may take: what was asked for, else this policy's, else the default."""
        if asked_s is not None:
            return positive(f"the deadline of {command}", asked_s)
        return float(self.deadlines_s.get(command, DEADLINES_S[command]))

    def least_grade(self, claim: str) -> Grade:
        """The least grade at which this claim may be entered."""
        return self.accept.get(claim, ACCEPT[claim])
