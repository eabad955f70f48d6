"""What miles and rlix call, under their names: a strict number, the offload default, the forwarded threshold.

Their two variables of the hook mode are named in nodes/hook_mode.py, which reads them in running processes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from ..core.errors import ConfigurationError

#: The residual threshold in GiB: our variable, and that of miles.
THRESHOLD, MILES_THRESHOLD = "LIFECYCLE_RESIDUAL_THRESHOLD_GIB", "MILES_MAX_RESIDUAL_GPU_MEM_GB"

#: With this value of this variable several pipelines share the GPUs, so that every engine must release its memory.
CONTROL_PLANE, RLIX = "RLIX_CONTROL_PLANE", "rlix"


def parse_env_positive_float(name: str, default: float, environ: Mapping[str, str] | None = None) -> float:
    """Returns the number in this variable, finite and above 0; `default` where the variable is unset.

    `environ` defaults to the environment of this process. Raises ConfigurationError, a RuntimeError, that names the
    variable and its value. `nan` and `inf` are refused: compared with them, every residual would pass.
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
    """Sets `args.offload_rollout` to True where RLIX_CONTROL_PLANE is `rlix`; returns whether that changed it.

    Without it the engines run without a memory saver: a release answers 200 and frees nothing, and the next tenant of
    the GPU runs out of memory. A missing attribute counts as False. No other attribute of `args` changes.
    `environ` defaults to the environment of this process.
    """
    if (os.environ if environ is None else environ).get(CONTROL_PLANE) != RLIX:
        return False
    changed = not getattr(args, "offload_rollout", False)
    args.offload_rollout = True
    return changed


def forwarded(threshold_gib: float) -> dict[str, str]:
    """Returns the variables that give an agent, a node or a Ray actor (runtime_env) the residual threshold in GiB."""
    return {THRESHOLD: repr(threshold_gib), MILES_THRESHOLD: repr(threshold_gib)}
