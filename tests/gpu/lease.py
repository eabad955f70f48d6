"""What `make gpu` must run, in which order, and how much time it has. Needs nothing but Python.

LIFECYCLE_GPU_REQUIRED names what must be there: anything at all, a GPU; `vllm` or `sglang` among its words, that engine
too. What is not named and cannot be had is skipped, with the reason. LIFECYCLE_GPU_LIMIT_S is the time for all of it:
what is asked last is skipped where too little is left.
"""

from __future__ import annotations

import os
import time

#: The modules in the order in which they are asked: what is cheapest and tells most first.
ORDER = ("test_gpu", "test_evidence_on_gpu", "test_torch_on_gpu", "test_engines_on_gpu")

#: Seconds that an engine needs at least: to be imported, started, and driven round the ring twice.
ENGINE_S = 150.0

_BEGAN_S = time.monotonic()


def is_required(what: str = "") -> bool:
    """Whether this must be there; without a name, whether a GPU must."""
    asked = os.environ.get("LIFECYCLE_GPU_REQUIRED", "")
    return what in asked.replace(",", " ").split() if what else bool(asked)


def place(module: str) -> int:
    """Where this module stands among those of the lane."""
    return ORDER.index(module) if module in ORDER else len(ORDER)


def left_s(most_s: float) -> float:
    """The seconds that are left, and no more than so many. Raises ValueError where the limit is no number."""
    limit = os.environ.get("LIFECYCLE_GPU_LIMIT_S", "")
    if not limit:
        return most_s
    try:
        whole_s = float(limit)
    except ValueError:
        raise ValueError(f"LIFECYCLE_GPU_LIMIT_S must be a number of seconds, got {limit!r}") from None
    return max(0.0, min(most_s, whole_s - (time.monotonic() - _BEGAN_S)))
