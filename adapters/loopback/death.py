"""Kills the engine's whole process tree, some time after its scheduler has failed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

from .pipeline import Pipeline


class Death:
    """Sends SIGKILL to every process of this engine, `delay_s` after it was scheduled.

    Source: sglang 0.5.23, measured: after an exception the scheduler sends SIGQUIT to the server, which sends SIGKILL
    to the whole tree some 5 s later.
    """

    def __init__(self, pipelines: Sequence[Pipeline], delay_s: float) -> None:
        self._pipelines = pipelines
        self._delay_s = delay_s
        self._once = threading.Lock()
        self.exiting = False  # True during a clean exit, in which ranks end

    def schedule(self, reason: str) -> None:
        """Kills the tree after the delay. Only the first call has an effect."""
        if self.note(reason):
            threading.Thread(target=self._kill_after, args=(self._delay_s,), daemon=True).start()

    def note(self, reason: str) -> bool:
        """Prints why the engine dies, once. Returns whether this is the first call, and no clean exit is under way."""
        if self.exiting or not self._once.acquire(blocking=False):
            return False
        print(f"engine dies: {reason}", file=sys.stderr, flush=True)
        return True

    def watch_stdin(self) -> None:
        """Kills the tree when standard input is closed, which means that the process that started it has ended."""
        threading.Thread(target=self._await_end_of_stdin, daemon=True).start()

    def _await_end_of_stdin(self) -> None:
        while os.read(0, 4096):
            pass
        self._kill_after(0.0)

    def _kill_after(self, delay_s: float) -> None:
        time.sleep(delay_s)
        for pipeline in self._pipelines:
            pipeline.kill()
        os.kill(os.getpid(), signal.SIGKILL)
