"""`python guard.py GRACE_S COMMAND...` runs a server, and ends it with its whole tree when the starter has ended.

The guard polls its parent instead of asking the kernel for a signal at the parent's death. That signal is sent when the
*thread* ends that started the child, and tests start servers from worker threads. The starter gives the guard a session
of its own, so that Ctrl-C in the terminal reaches the tests and not the server. The guard is the subreaper of the tree,
so that orphans become its children and are ended too. Its first line on standard output is the process id of the
server; its exit status is the server's, as a shell would give it.

Linux only; standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.1

_libc = ctypes.CDLL(None, use_errno=True)


class _Stop:
    """Whether a signal has asked the guard to end."""

    requested = False

    def request(self, _signal: int, _frame: FrameType | None) -> None:
        """Ends the loop at its next poll."""
        self.requested = True


def main(grace_s: float, command: list[str]) -> int:
    """Runs the server, ends its whole tree, and returns its exit status."""
    parent, stop = os.getppid(), _Stop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop.request)
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    # Standard output has the process id and nothing else: the server's output goes to standard error.
    server = subprocess.Popen(command, stdout=sys.stderr.fileno(), preexec_fn=_die_with_the_guard)
    print(server.pid, flush=True)
    while server.poll() is None and not stop.requested and os.getppid() == parent:
        time.sleep(POLL_S)
    _end(server, grace_s if os.getppid() == parent else 0.0)
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def _die_with_the_guard() -> None:
    """Has the kernel kill the server if the guard is killed. The guard has one thread, so that this signal is safe."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(server: subprocess.Popen[bytes], grace_s: float) -> None:
    """Ends the server and everything it started: by SIGTERM, after the grace period by SIGKILL."""
    if server.poll() is None and grace_s > 0:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(grace_s)
    while left := list(_descendants(os.getpid())):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _reap(server)
        time.sleep(0.02)
    server.wait()


def _descendants(pid: int) -> Iterator[int]:
    """Every process under this one, parents first."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return
    for child in map(int, children):
        yield child
        yield from _descendants(child)


def _reap(server: subprocess.Popen[bytes]) -> None:
    """Reaps the guard's other children; the server's exit status is kept."""
    server.poll()
    for pid in map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()):
        if pid != server.pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
