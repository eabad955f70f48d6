"""Tests on a real NVIDIA GPU (`make gpu`): processes that hold its memory, and a report of every figure.

They also run where no package registry can be reached: packages that these tests do not need (transitions) may be
missing.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

sys.path.insert(0, str(HERE))

import lease  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips every test here where there is no GPU. `make gpu` fails instead. What costs most is asked last."""
    mine = [item for item in items if HERE in Path(item.path).parents]
    ordered = iter(sorted(mine, key=lambda item: lease.place(item.path.stem)))
    items[:] = [next(ordered) if item in mine else item for item in items]
    if mine and not _has_gpu():
        if lease.is_required():
            raise pytest.UsageError("make gpu needs an NVIDIA GPU, its driver and nvidia-ml-py, and finds none")
        for item in mine:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))


def _has_gpu() -> bool:
    from lifecycle.nodes.driver import DriverUnavailable, driver

    try:
        return bool(driver().snapshot().devices)
    except DriverUnavailable:
        return False


class Holding:
    """A process that holds GPU memory. `pid` is the root of its tree, `holder` the process with the CUDA context."""

    def __init__(self, depth: int) -> None:
        command = [sys.executable, str(HERE / "holder.py"), "--depth", str(depth)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self.holder = int(self._line())

    def command(self, words: str) -> None:
        """Sends a command to the process and waits until it is done."""
        assert self._process.stdin is not None
        self._process.stdin.write(words + "\n")
        self._process.stdin.flush()
        if words != "quit":
            assert self._line() == "ok"

    def end(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.poll() is None and not self._process.stdin.closed:
            self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture
def hold() -> Iterator[Callable[..., Holding]]:
    """Starts processes that hold GPU memory, and ends all of them after the test."""
    with ExitStack() as stack:

        def begin(depth: int = 0) -> Holding:
            holding = Holding(depth)
            stack.callback(holding.end)
            return holding

        yield begin


class Report:
    """What was measured, by name; printed, and written to $LIFECYCLE_GPU_REPORT (a folder) if that is set."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self.answers: dict[str, Any] = {}

    def add(self, name: str, **figures: Any) -> None:
        """Adds these figures under this name."""
        self.figures.setdefault(name, {}).update(figures)
        print(name, json.dumps(figures))


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    """Collects the figures that the tests measure, and writes them at the end."""
    from lifecycle.nodes.driver import driver

    found = Report()
    snapshot = driver().snapshot()
    found.add(
        "machine",
        gpus=[f"{device.name} sm_{device.major}{device.minor}" for device in snapshot.devices],
        driver=snapshot.driver,
        kernel=platform.release(),
        python=platform.python_version(),
    )
    yield found
    folder = os.environ.get("LIFECYCLE_GPU_REPORT")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "gpu.json").write_text(json.dumps(found.figures, indent=2) + "\n")
        (Path(folder) / "driver-answers.json").write_text(json.dumps(found.answers, indent=1) + "\n")
