"""A wall clock that somebody sets: what reads it sees another time from then on, as the kernel shows it."""

from __future__ import annotations

import time

import psutil
import pytest


class WallClock:
    """The wall clock of this process, `ahead_s` seconds before the real one; every other clock goes on as it did.

    The kernel keeps the start times of processes by a clock that nobody sets, and moves the time of its own boot.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.ahead_s = 0.0
        real, booted = time.time, psutil._pslinux.boot_time
        patch.setattr(time, "time", lambda: real() + self.ahead_s)
        patch.setattr(psutil._pslinux, "boot_time", lambda: booted() + self.ahead_s)
