"""How the engine dies: the whole tree at once, some time after the scheduler did."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from .pipeline import Pipeline


class Death:
    """Ends every process of this engine with SIGKILL.

    Source: sglang 0.5.23, measured: the scheduler's exception, SIGQUIT to the server, some 5 s, then SIGKILL to the
    whole tree.
    """

    def __init__(self, pipeline: Pipeline, delay_s: float) -> None:
        self._pipeline = pipeline
        self._delay_s = delay_s
        self._once = threading.Lock()
        self.leaving = False  # a clean exit has begun: ranks may end

    def sentence(self, reason: str) -> None:
        """The tree will be dead after the delay; the first reason counts."""
        if self.leaving or not self._once.acquire(blocking=False):
            return
        print(f"engine dies: {reason}", file=sys.stderr, flush=True)
        threading.Thread(target=self._execute, args=(self._delay_s,), daemon=True).start()

    def watch_stdin(self) -> None:
        """When standard input ends, the tree ends: whoever started it is gone."""
        threading.Thread(target=self._await_end_of_stdin, daemon=True).start()

    def _await_end_of_stdin(self) -> None:
        while os.read(0, 4096):
            pass
        self._execute(0.0)

    def _execute(self, delay_s: float) -> None:
        time.sleep(delay_s)
        self._pipeline.kill()
        os.kill(os.getpid(), signal.SIGKILL)
