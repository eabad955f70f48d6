"""`lifecycle demo`: four engine processes under load are offloaded and onloaded three times, and each claim is checked.

run          the command; returns its exit code
story        the three cycles and their checks
stage        starts and stops checkpoints, engines, fleet and clients
engines      the engine processes
clients      the load, and the count of its requests
trainer      a process that allocates the memory that the engines released
phases       the duration of each phase
report       lines, tables and checks
"""

from __future__ import annotations

import asyncio
import signal


def run(
    *,
    threshold_gib: float = 0.25,
    weights_mib: int = 192,
    kv_mib: int = 192,
    clients: int = 8,
    deadline_s: float = 30.0,
    fault: str | None = None,
) -> int:
    """Runs the demo. Returns 0 where every check held, else 1; no process that it started is left.

    `threshold_gib` is what an engine may keep after a release. `weights_mib` and `kv_mib` are the sizes of each engine;
    together they must exceed 64 MiB, since less is not measurable in a process's memory. `deadline_s` bounds each
    phase. `fault` injects a fault into one decode engine (`release=leak:100`), which the checks must detect.
    """
    from .stage import Settings
    from .story import play

    settings = Settings(threshold_gib, weights_mib, kv_mib, clients, deadline_s, fault)
    try:
        return asyncio.run(play(settings))
    except asyncio.CancelledError:  # SIGTERM cancels the task
        return 128 + signal.SIGTERM
