"""Wall-clock times that other processes of this host read, whoever sets the clock meanwhile.

A time until when something may run is written down in wall-clock seconds, since another host may read it too. Where
the clock is set forward, that time seems to have passed; where it is set back, to be far ahead. So a stamp is written
beside it: the boot of the host, and how far the wall clock is ahead of the monotonic one. Nobody sets that one, and all
processes of a boot share it. It stands still while the host sleeps, as the host's engines do.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path


@cache
def host_boot() -> str:
    """The boot of this host; empty where the kernel does not name it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def stamp() -> str:
    """How the wall clock stands now."""
    return f"{host_boot()}/{_ahead_s():.3f}"


def set_since_s(stamp: str) -> float:
    """By how many seconds the wall clock was set forward since this stamp was made, below 0 where it was set back.

    0 where that cannot be told: on another host, in another boot of this one, or without a stamp.
    """
    boot, _, ahead = stamp.partition("/")
    if not boot or boot != host_boot():
        return 0.0
    try:
        return _ahead_s() - float(ahead)
    except ValueError:
        return 0.0


def _ahead_s() -> float:
    return time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
