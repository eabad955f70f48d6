"""Starts loopback engines as child processes of a test or a program, and stops them with all their processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import urlsplit

_POLL_S = 0.01
_TAIL_BYTES = 4000


class StartFailed(RuntimeError):
    """The engine did not start; the message has the end of its standard error."""


@dataclass(slots=True)
class LoopbackProcess:
    """A running engine. Its process group consists of the server and its ranks."""

    url: str
    pid: int
    rank_pids: tuple[int, ...]  # [ranks]; of one rank, the server's
    weights: Path  # the checkpoint with which it was started
    _process: subprocess.Popen[bytes]
    _stderr: IO[bytes]

    @classmethod
    def start(
        cls,
        *,
        dialect: str | None = None,
        weights_mib: int = 64,
        kv_mib: int = 64,
        ranks: int = 1,
        memory_saver: bool = True,
        weights_backup: bool = False,
        cpu_like: bool = False,
        seed: int = 0,
        weights: str | Path | None = None,
        faults: Sequence[str] = (),
        allow_faults: bool = False,
        port: int = 0,
        api_key: str | None = None,
        admin_api_key: str | None = None,
        arguments: Sequence[str] = (),
        deadline_s: float = 30.0,
    ) -> Self:
        """Starts an engine and returns once it accepts requests. Raises StartFailed where it does not in time.

        `dialect` is as in `vllm:0.32`; None is SGLang's. `cpu_like` is vLLM's: sleep frees nothing, so that there is no
        memory saver. `arguments` are appended to the command line.
        """
        memory_saver = memory_saver and not cpu_like
        command = [sys.executable, "-m", __package__, "--die-with-stdin", *arguments]
        command += _flags(
            memory_saver=memory_saver, weights_backup=weights_backup, cpu_like=cpu_like, allow_faults=allow_faults
        )
        command += _values(
            dialect=dialect,
            weights_mib=weights_mib,
            kv_mib=kv_mib,
            ranks=ranks,
            seed=seed,
            weights=weights,
            port=port,
            api_key=api_key,
            admin_api_key=admin_api_key,
        )
        command += [part for fault in faults for part in ("--fault", fault)]
        return cls._launch(command, deadline_s)

    @classmethod
    async def astart(cls, **chosen: Any) -> Self:
        """`start`, in a thread, so that the event loop is not blocked."""
        return await asyncio.to_thread(lambda: cls.start(**chosen))

    @classmethod
    def _launch(cls, command: list[str], deadline_s: float) -> Self:
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - not a pipe: a full one would block the engine
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
        )
        try:
            announced = _first_line(process, time.monotonic() + deadline_s)
        except BaseException as error:
            _end(process)
            raise StartFailed(f"{error}; its standard error ends: {_tail(stderr, close=True)}") from error
        return cls(
            announced["url"],
            announced["pid"],
            tuple(announced["rank_pids"]),
            Path(announced["weights"]),
            process,
            stderr,
        )

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes of the server and its ranks."""
        return tuple(dict.fromkeys((self.pid, *self.rank_pids)))

    @property
    def returncode(self) -> int | None:
        """The server's exit status; None while it runs; after a signal, minus the signal's number."""
        return self._process.poll()

    def stderr_tail(self) -> str:
        """The last bytes that the engine wrote to standard error."""
        return _tail(self._stderr)

    def wait(self, deadline_s: float = 10.0) -> int:
        """Waits until the server has ended and returns its exit status. Raises TimeoutError where it does not end."""
        try:
            return self._process.wait(deadline_s)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"engine {self.pid} still runs after {deadline_s} s") from error

    def stop(self, deadline_s: float = 5.0) -> int:
        """Ends the engine by SIGTERM, or after the deadline by SIGKILL; returns its exit status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            _await_exit(self._process, deadline_s)
        return self.kill()

    async def astop(self, deadline_s: float = 5.0) -> int:
        """`stop`, in a thread, so that the event loop is not blocked."""
        return await asyncio.to_thread(self.stop, deadline_s)

    def kill(self) -> int:
        """Kills every process of the engine; returns its exit status."""
        _end(self._process)
        if not self._stderr.closed:
            self._stderr.close()
        return self._process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.astop()

    def __repr__(self) -> str:
        return f"<LoopbackProcess {self.url} pid={self.pid}>"


def _flags(**chosen: bool) -> list[str]:
    return [_option(name) for name, value in chosen.items() if value]


def _values(**chosen: object) -> list[str]:
    return [part for name, value in chosen.items() if value is not None for part in (_option(name), str(value))]


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _first_line(process: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    line = b""
    while not line.endswith(b"\n"):
        line += process.stdout.read() or b""
        if process.poll() is not None and not line.endswith(b"\n"):
            raise StartFailed(f"the engine ended with {process.returncode} before it was ready")
        if time.monotonic() > deadline:
            raise StartFailed("the engine was not ready in time")
        time.sleep(_POLL_S)
    announced: dict[str, Any] = json.loads(line)
    return announced


def _await_exit(process: subprocess.Popen[bytes], deadline_s: float) -> None:
    """Waits until the server has ended, or the deadline. It is not reaped, so that its group's id is not used again."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(_POLL_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def _tail(stderr: IO[bytes], *, close: bool = False) -> str:
    if stderr.closed:
        return ""
    size = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, size - _TAIL_BYTES))
    text = stderr.read().decode(errors="replace").strip()
    if close:
        stderr.close()
    return text
