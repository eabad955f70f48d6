"""`lifecycle demo`: four real engines under load go three times round the ring, and everything said of it is checked.

run          the command: exit code in return
story        what happens, in order, and what must hold
stage        checkpoints, engines, fleet and clients, set up and taken down
engines      the engine processes
clients      the load, and its account of every request
trainer      the process that takes the memory which the engines gave back
phases       how long each phase took
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
    """0 if everything held, 1 if anything did not; no process that it started is left.

    `threshold_gib` is what an engine may keep after a release; `weights_mib` and `kv_mib` are the sizes of each engine
    (together above 64 MiB, less cannot be seen in a process's memory). `deadline_s` bounds each phase. `fault` makes
    one decode engine misbehave (`release=leak:100`), to see that the demo notices.
    """
    from .stage import Settings
    from .story import play

    settings = Settings(threshold_gib, weights_mib, kv_mib, clients, deadline_s, fault)
    try:
        return asyncio.run(play(settings))
    except asyncio.CancelledError:  # by SIGTERM
        return 128 + signal.SIGTERM
