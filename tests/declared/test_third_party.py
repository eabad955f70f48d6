"""The adapter of docs/third_party_adapter, installed as its author would, drives an engine that is none of ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "docs" / "third_party_adapter"

#: The cases of the suite that are run, unless all of them are (LIFECYCLE_TEST_LONG).
CHOSEN = (
    "it_is_what_its_author_says or resume-from-drained or updating or in_flight or checkpoint_that_is_not_there or "
    "(lost and restore_kv) or (cancelled and release) or (killed and release) or met_afresh"
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the package is built first, in an environment of its own


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the package is installed."""
    folder = tmp_path_factory.mktemp("third-party")
    source = folder / "source"  # building leaves files beside it
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder / "site"),
        str(source),
    ]
    done = subprocess.run(install, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> object:
    """Runs a command where the package is installed."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "XDG_STATE_HOME": str(tmp_path / "state")}

    def command(*arguments: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            env=environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    return command


@pytest.fixture
def url(installed: Path) -> Iterator[str]:
    """The URL of a tiny engine that runs."""
    process = subprocess.Popen([sys.executable, str(installed / "tiny_engine.py")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield f"tiny://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_command_line_drives_it_round_the_ring(run, url: str, tmp_path: Path) -> None:
    weights = tmp_path / "w9"
    weights.write_bytes(b"\x09")
    status = run("lifecycle", "status", url)
    assert status.returncode == 0, status.stderr
    assert "serving" in status.stdout
    cycle = run(
        "lifecycle", "cycle", url, "--weights", str(weights), "--version", "w9", "--threshold-gib", "0.1", "--json"
    )
    assert cycle.returncode == 0, cycle.stderr
    assert "returned 192 MiB of 192 MiB expected" in run("lifecycle", "history").stdout
    assert "loaded(w9)" in run("lifecycle", "status", url).stdout


def test_it_is_unknown_where_it_is_not_installed(url: str, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "lifecycle", "status", url]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "no adapter for 'tiny'" in done.stderr


def test_the_conformance_suite_passes_on_it(run, tmp_path: Path, report) -> None:
    tests = tmp_path / "tests"
    shutil.copytree(SOURCE / "tests", tests)
    chosen = [] if os.environ.get("LIFECYCLE_TEST_LONG") else ["-k", CHOSEN]
    done = run("pytest", "-q", "-p", "no:cacheprovider", *chosen, str(tests), cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:]
    report(f"third-party adapter, conformance: {done.stdout.strip().splitlines()[-1]}")


def test_the_engine_of_the_example_stays_a_page() -> None:
    assert len((SOURCE / "tiny_engine.py").read_text().splitlines()) <= 110
    assert len((SOURCE / "lifecycle_tiny.py").read_text().splitlines()) <= 100
