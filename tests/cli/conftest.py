"""One loopback engine for the command line's tests, and a state folder of their own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle.cli import main

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
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of the tests of a file."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def lifecycle(kept: Path) -> Run:
    """Runs a command, which knows of the ones before only what they kept; an exception that it lets out is raised."""

    def run(*arguments: str, state: Path = kept) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        environment = mock.patch.dict(os.environ, LIFECYCLE_STATE_DIR=str(state))
        with environment, redirect_stdout(out), redirect_stderr(err):
            code = main(arguments)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="module")
def lifecycle_process(kept: Path) -> Run:
    """Runs the same in a process of its own, as a user does."""

    def run(*arguments: str, state: Path = kept) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lifecycle", *arguments]
        environment = {**os.environ, "LIFECYCLE_STATE_DIR": str(state)}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)

    return run
