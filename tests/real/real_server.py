"""A real server from a package: `.start()` returns when it answers, `.stop()` when nothing of it is left."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from build_env import CACHE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE = Path(__file__).resolve().parent
LOGS = CACHE / "logs"


# The machine may have a proxy; the server is on this side of it.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerNotReady(RuntimeError):
    """The server died or did not answer in time; the message ends with the tail of its log."""


class RealServer(ABC):
    """A server on a free port of 127.0.0.1. Ready: `READY` is 200, or refused for want of a key.

    `environment` and `command()` are what it is started with.
    """

    ENGINE: ClassVar[str]
    READY: ClassVar[str]
    ENVIRONMENT: ClassVar[Mapping[str, str]]

    def __init__(self, *, environment: Mapping[str, str] | None = None, deadline_s: float, grace_s: float) -> None:
        self._environment = dict(environment or {})
        self._deadline_s = deadline_s
        self._grace_s = grace_s
        self._guard: subprocess.Popen[str] | None = None
        self.port = 0
        self.pid = 0
        self.log = LOGS / "not-started.log"
        self.startup_s = 0.0
        self._scratch: Path | None = None

    @abstractmethod
    def command(self) -> Sequence[str]:
        """The command line. The environment and the checkpoint are made where they are missing."""

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url} pid={self.pid} {'running' if self.alive else 'gone'}>"

    @property
    def alive(self) -> bool:
        """True while the server's first process runs."""
        return self._guard is not None and self._guard.poll() is None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """The server answers. Raises `ServerNotReady`, with nothing left running, if it does not."""
        self.port = _free_port()
        command = self.command()
        LOGS.mkdir(parents=True, exist_ok=True)
        self._scratch = Path(tempfile.mkdtemp(prefix=f"{self.ENGINE}-"))
        self.log = LOGS / f"{self.ENGINE}-{time.strftime('%m%d-%H%M%S')}-{self.port}.log"
        started = time.monotonic()
        try:
            self._launch(command)
            self._wait_until_ready(started + self._deadline_s)
        except BaseException:
            self.stop()
            raise
        self.startup_s = time.monotonic() - started
        return self

    def stop(self) -> int | None:
        """Nothing of the server is left; returns its exit status as a shell would, None if it never started.

        It is asked first (SIGTERM) and killed after `grace_s`: a paused SGLang never ends by itself.
        """
        guard = self._guard
        if guard is None:
            return None
        if guard.poll() is None:
            guard.terminate()
        status = guard.wait()
        if guard.stdout is not None:
            guard.stdout.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        return status

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of what the server printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _launch(self, server: Sequence[str]) -> None:
        command = [sys.executable, str(HERE / "guard.py"), str(self._grace_s), *server]
        with self.log.open("w") as log:
            self._guard = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=LOGS,
                env=self._whole_environment(),
                start_new_session=True,
                text=True,
            )
        assert self._guard.stdout is not None
        self.pid = int(self._guard.stdout.readline())

    def _whole_environment(self) -> dict[str, str]:
        # A folder for its sockets and spilled weights; short, since the name of a socket is at most 107 bytes long.
        own = {"TMPDIR": str(self._scratch)}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "LD_PRELOAD"))}
        return {**inherited, **self.ENVIRONMENT, **own, **self._environment}

    def _wait_until_ready(self, until: float) -> None:
        while not self._answers():
            if not self.alive:
                raise ServerNotReady(f"the server ended before it was ready\n{self.log_tail()}")
            if time.monotonic() > until:
                raise ServerNotReady(f"no answer within {self._deadline_s:.0f} s\n{self.log_tail()}")
            time.sleep(0.25)

    def _answers(self) -> bool:
        """True once the socket listens; a server with keys refuses the question, and that is an answer too."""
        try:
            with _direct.open(self.url + self.READY, timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as refused:
            return refused.code == 401
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
