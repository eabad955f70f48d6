"""Engines in memory for tests of code that uses this library: a script decides how each call ends."""

from ..core.policy import Policy
from ..engine.engine import Engine
from .acts import (
    DIE,
    DIE_AFTER,
    DONE,
    HANG,
    HANG_AFTER,
    HANG_LATE,
    LATE,
    LIE,
    LOST,
    LOST_AFTER,
    REJECTED,
    REJECTED_AFTER,
    RESTART,
    RESTART_AFTER,
    Act,
)
from .journal import Entry, Journal
from .model import ScriptedEngine
from .ranks import RankInMemory, ranks_in_memory
from .router import ScriptedRouter
from .scripted import (
    CUDA_GRAPH,
    KEPT_WEIGHTS,
    KV_CACHE,
    PAUSE_MODES,
    WEIGHTS,
    ScriptedAdapter,
    ScriptedProbe,
    capabilities,
)

#: A policy with waits that are short enough for tests.
QUICK = Policy(settle_s=0.05, poll_s=0.001)

__all__ = [
    "CUDA_GRAPH",
    "DIE",
    "DIE_AFTER",
    "DONE",
    "HANG",
    "HANG_AFTER",
    "HANG_LATE",
    "KEPT_WEIGHTS",
    "KV_CACHE",
    "LATE",
    "LIE",
    "LOST",
    "LOST_AFTER",
    "PAUSE_MODES",
    "QUICK",
    "REJECTED",
    "REJECTED_AFTER",
    "RESTART",
    "RESTART_AFTER",
    "WEIGHTS",
    "Act",
    "Entry",
    "Journal",
    "RankInMemory",
    "ScriptedAdapter",
    "ScriptedEngine",
    "ScriptedProbe",
    "ScriptedRouter",
    "capabilities",
    "ranks_in_memory",
    "scripted",
]


def scripted(
    adapter: ScriptedAdapter,
    *,
    group: str = "default",
    offload: bool = True,
    policy: Policy = QUICK,
    has_router: bool = False,
) -> Engine:
    """Returns an engine over this adapter and its probe, not yet connected."""
    return Engine(
        adapter,
        name=adapter.name,
        group=group,
        offload=offload,
        policy=policy,
        probe=adapter.probe,
        has_router=has_router,
    )
