"""One loopback engine for the command line's tests, and a state folder of their own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from unittest import mock

import journals
import pytest
from journal_files import SMALL, Driven, Lines
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

    return partial(_run, state=kept)


def _run(*arguments: str, state: Path) -> subprocess.CompletedProcess[str]:
    out, err = io.StringIO(), io.StringIO()
    environment = mock.patch.dict(os.environ, LIFECYCLE_STATE_DIR=str(state))
    with environment, redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def lifecycle_process(kept: Path) -> Run:
    """Runs the same in a process of its own, as a user does."""

    def run(*arguments: str, state: Path = kept) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lifecycle", *arguments]
        environment = {**os.environ, "LIFECYCLE_STATE_DIR": str(state)}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)

    return run


@pytest.fixture(scope="session")
def driven(tmp_path_factory: pytest.TempPathFactory) -> Driven:
    folder = tmp_path_factory.mktemp("driven")
    with ExitStack() as stack, journals.kept() as noted:
        engines = [
            stack.enter_context(LoopbackProcess.start(weights_mib=96, kv_mib=96, weights_backup=True)) for _ in "ab"
        ]
        urls = [f"loopback://127.0.0.1:{each.port}?name={name}" for each, name in zip(engines, "ab", strict=True)]
        for arguments, code in (
            (("offload", *urls, "--weights", "kept", *SMALL), 0),
            (("resume", urls[0]), 3),
            (("onload", *urls), 0),
        ):
            result = _run(*arguments, state=folder)
            assert result.returncode == code, result.stderr
    return Driven(folder / "engines.sqlite3", noted)


@pytest.fixture(scope="session")
def driven_lines(driven: Driven) -> Lines:
    """The same journal, as `history --json` prints it."""
    result = _run("history", "--json", "--file", str(driven.path), state=driven.path.parent)
    return [json.loads(line) for line in result.stdout.splitlines()]
