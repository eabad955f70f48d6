"""The environment, as frameworks use it: a number read strictly, a default forced, and what every node must be told."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from ..core.errors import ConfigurationError

THRESHOLD, MILES_THRESHOLD = "LIFECYCLE_RESIDUAL_THRESHOLD_GIB", "MILES_MAX_RESIDUAL_GPU_MEM_GB"

#: With this value of this variable the engines share their GPUs, and must give them back.
CONTROL_PLANE, RLIX = "RLIX_CONTROL_PLANE", "rlix"


def parse_env_positive_float(name: str, default: float, environ: Mapping[str, str] | None = None) -> float:
    """The number in this variable, finite and above 0; `default` where it is unset.

    ConfigurationError names the variable and its value: `nan` and `inf` would let every residual pass.
    """
    text = (os.environ if environ is None else environ).get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        raise ConfigurationError(f"{name} must be a number, got {text!r}") from None
    if not math.isfinite(value):
        raise ConfigurationError(f"{name} must be a finite number, got {text!r}")
    if value <= 0:
        raise ConfigurationError(f"{name} must be > 0, got {text!r}")
    return value


def apply_offload_defaults(args: Any, environ: Mapping[str, str] | None = None) -> bool:
    """`args.offload_rollout` is True where RLIX_CONTROL_PLANE is `rlix`; whether that changed it.

    Without it a release answers 200 and frees nothing, and the next tenant of the GPU runs out of memory. Nothing
    else of `args` is touched; an attribute that is missing counts as False.
    """
    if (os.environ if environ is None else environ).get(CONTROL_PLANE) != RLIX:
        return False
    changed = not getattr(args, "offload_rollout", False)
    args.offload_rollout = True
    return changed


def forwarded(threshold_gib: float) -> dict[str, str]:
    """The variables by which an agent, a node or a Ray actor (runtime_env) gets the residual threshold."""
    return {THRESHOLD: repr(threshold_gib), MILES_THRESHOLD: repr(threshold_gib)}
