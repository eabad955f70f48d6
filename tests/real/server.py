"""Inside `with RealSGLang(...) as server:` an unmodified SGLang serves on a CPU; afterwards nothing of it is left.

    with RealSGLang() as server:
        requests.get(server.url + "/model_info")

The environment and the checkpoints are built at the first use. With `memory_saver` the stand-in for torch_memory_saver
stands first on the server's module path, and a release really gives memory back to the operating system.
"""

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
from pathlib import Path
from typing import TYPE_CHECKING, Self

from build_env import CACHE, PYTHON, build
from make_model import checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE = Path(__file__).resolve().parent
STANDIN = HERE / "standin"
LOGS = CACHE / "logs"

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "SGLANG_USE_CPU_ENGINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}

ARGUMENTS = """
--device cpu --attention-backend torch_native --disable-overlap-schedule --skip-server-warmup --disable-cuda-graph
--mem-fraction-static 0.2 --max-total-tokens 12288 --context-length 4096 --max-running-requests 4
--sampling-backend pytorch --grammar-backend none --dtype float32
"""


# The machine may have a proxy; the server is on this side of it.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerNotReady(RuntimeError):
    """The server died or did not answer in time; the message ends with the tail of its log."""


class RealSGLang:
    """A real SGLang on a CPU: `.start()` returns when it answers, `.stop()` when all of it is gone.

    `seed` chooses the checkpoint it starts with; `extra` is appended to its arguments. Ready means `GET /model_info` is
    200: a line in the log says ready before the socket listens.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        memory_saver: bool = True,
        weights_cpu_backup: bool = False,
        extra: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        deadline_s: float = 180.0,
        grace_s: float = 10.0,
    ) -> None:
        self._seed = seed
        self._flags = ["--enable-memory-saver"] * memory_saver + ["--enable-weights-cpu-backup"] * weights_cpu_backup
        self._extra = list(extra)
        self._environment = dict(environment or {})
        self._deadline_s = deadline_s
        self._grace_s = grace_s
        self._guard: subprocess.Popen[str] | None = None
        self.port = 0
        self.pid = 0
        self.log = LOGS / "not-started.log"
        self.startup_s = 0.0
        self._scratch: Path | None = None

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def __repr__(self) -> str:
        return f"<RealSGLang {self.url} pid={self.pid} {'running' if self.alive else 'gone'}>"

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
        build()
        model, self.port = checkpoint(self._seed), _free_port()
        LOGS.mkdir(parents=True, exist_ok=True)
        self._scratch = Path(tempfile.mkdtemp(prefix="sglang-"))
        self.log = LOGS / f"sglang-{time.strftime('%m%d-%H%M%S')}-{self.port}.log"
        started = time.monotonic()
        try:
            self._launch(model)
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

    def _launch(self, model: Path) -> None:
        server = [str(PYTHON), "-m", "sglang.launch_server", "--model-path", str(model), "--port", str(self.port)]
        server += [*ARGUMENTS.split(), *self._flags, *self._extra]
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
        own = {"PYTHONPATH": str(STANDIN), "TMPDIR": str(self._scratch)}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "LD_PRELOAD"))}
        return inherited | ENVIRONMENT | own | self._environment

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
            with _direct.open(self.url + "/model_info", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as refused:
            return refused.code == 401
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
