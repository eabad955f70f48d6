"""A server started through `python guard.py GRACE_S COMMAND...` is gone, with its whole tree, when its starter is gone.

The guard polls instead of asking the kernel for a signal at its parent's death: that signal comes when the *thread*
ends that started the child, and tests start servers from worker threads. Its starter gives it a session of its own, so
that Ctrl-C in the terminal reaches the tests and not the server. Orphans of the tree become the guard's children (it is
their subreaper), so that nothing escapes. Its first line on standard output is the process id of the server; its exit
status is the server's, as a shell would give it.

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


class _Wanted:
    """Whether somebody asked the guard to end."""

    stop = False

    def ask(self, _signal: int, _frame: FrameType | None) -> None:
        """The loop ends at its next look."""
        self.stop = True


def main(grace_s: float, command: list[str]) -> int:
    """The server has run and is gone with its tree; returns its exit status."""
    parent, wanted = os.getppid(), _Wanted()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, wanted.ask)
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    # Standard output carries the process id and nothing else: what the server prints goes where the guard's errors go.
    server = subprocess.Popen(command, stdout=sys.stderr.fileno(), preexec_fn=_die_with_the_guard)
    print(server.pid, flush=True)
    while server.poll() is None and not wanted.stop and os.getppid() == parent:
        time.sleep(POLL_S)
    _end(server, grace_s if os.getppid() == parent else 0.0)
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def _die_with_the_guard() -> None:
    """The server dies if even the guard is killed. The guard has one thread, so here the kernel's signal is safe."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(server: subprocess.Popen[bytes], grace_s: float) -> None:
    """The server and everything it started are gone: asked first, killed when the grace is over."""
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
    """No dead child of the guard is left as a zombie; the server's own status is kept."""
    server.poll()
    for pid in map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()):
        if pid != server.pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
