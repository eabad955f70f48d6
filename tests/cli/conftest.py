"""One loopback engine for the command line's tests, and a state folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lifecycle.adapters.loopback import LoopbackProcess

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def engine() -> Iterator[LoopbackProcess]:
    """A serving engine, shared by the tests of a file: each leaves it serving."""
    with LoopbackProcess.start(weights_mib=96, kv_mib=96) as process:
        yield process


@pytest.fixture
def address(engine: LoopbackProcess) -> str:
    """Its URL."""
    return f"loopback://127.0.0.1:{engine.port}"


@pytest.fixture(scope="module")
def lifecycle(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the command line in a process of its own; what it knows of engines is kept for the tests of a file."""
    kept = tmp_path_factory.mktemp("state")

    def run(*arguments: str, state: Path = kept) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lifecycle", *arguments]
        environment = {**os.environ, "LIFECYCLE_STATE_DIR": str(state)}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)

    return run
