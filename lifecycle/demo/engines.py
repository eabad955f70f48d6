"""The demo's engine processes: they are started and stopped, and end with the demo even after a SIGKILL."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

_COMMAND = (sys.executable, "-m", "lifecycle", "engine")
_START_S = 30.0
_STOP_S = 3.0
_TAIL_BYTES = 2000


class StartFailed(RuntimeError):
    """Raised where a process of the demo did not start; the message has the end of its standard error."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One engine to start. `arguments` are appended to its command line."""

    name: str
    group: str
    checkpoint: Path
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """An engine process that accepts requests at `url`."""

    plan: Plan
    url: str
    pid: int

    @property
    def name(self) -> str:
        """The engine's name in the fleet."""
        return self.plan.name

    @property
    def fleet_url(self) -> str:
        """The URL for `Fleet.connect`."""
        address = urlsplit(self.url).netloc
        return f"loopback://{address}?name={self.name}&group={self.plan.group}&pid={self.pid}"


@dataclass(frozen=True, slots=True)
class _Child:
    plan: Plan
    process: Process
    stderr: IO[bytes]


@asynccontextmanager
async def running(plans: Sequence[Plan]) -> AsyncIterator[list[RunningEngine]]:
    """Starts an engine for each plan; yields them once all accept requests, then ends them. Raises StartFailed."""
    children: list[_Child] = []
    try:
        for plan in plans:
            children.append(await _start(plan))
        yield list(await asyncio.gather(*(_wait_until_ready(child) for child in children)))
    finally:
        await asyncio.gather(*(_stop(child) for child in children))


async def make_checkpoint(path: Path, *, seed: int, weights_mib: int) -> Path:
    """Writes a checkpoint made from `seed` to `path`, and returns `path`."""
    chosen = ("--make-weights", str(path), "--seed", str(seed), "--weights-mib", str(weights_mib))
    process = await asyncio.create_subprocess_exec(*_COMMAND, *chosen, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE)
    try:
        _, stderr = await process.communicate()
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):
            process.kill()
        raise
    if process.returncode:
        raise StartFailed(f"no checkpoint could be made: {stderr.decode(errors='replace').strip()}")
    return path


async def _start(plan: Plan) -> _Child:
    stderr = tempfile.TemporaryFile()  # noqa: SIM115 - not a pipe: an unread pipe would block the engine
    process = await asyncio.create_subprocess_exec(
        *_COMMAND,
        *("--port", "0", "--weights", str(plan.checkpoint), "--memory-saver", *plan.arguments),
        "--die-with-stdin",  # its standard input closes when this process ends, even by SIGKILL
        stdin=PIPE,
        stdout=PIPE,
        stderr=stderr,
        start_new_session=True,  # Ctrl-C reaches the demo only, which then stops the engines
    )
    return _Child(plan, process, stderr)


async def _wait_until_ready(child: _Child) -> RunningEngine:
    """Reads the JSON line that the engine prints once it accepts requests."""
    assert child.process.stdout is not None
    try:
        line = await asyncio.wait_for(child.process.stdout.readline(), _START_S)
    except TimeoutError:
        raise StartFailed(f"{child.plan.name} was not ready in {_START_S:.0f} s: {_tail(child.stderr)}") from None
    if not line:
        raise StartFailed(f"{child.plan.name} ended before it was ready: {_tail(child.stderr)}")
    announced: dict[str, Any] = json.loads(line)
    return RunningEngine(child.plan, announced["url"], announced["pid"])


async def _stop(child: _Child) -> None:
    """Ends the process by SIGTERM, and by SIGKILL where it has not ended after 3 s."""
    process = child.process
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_S)
    except (TimeoutError, asyncio.CancelledError):
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    finally:
        child.stderr.close()


def _tail(stderr: IO[bytes]) -> str:
    size = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, size - _TAIL_BYTES))
    return stderr.read().decode(errors="replace").strip() or "its standard error is empty"
