"""The lane on a real NVIDIA GPU (`make gpu`): processes that hold its memory, and a report of every figure.

It also runs where no registry can be reached: what `lifecycle` itself needs and these tests do not (transitions) may
be missing, and then only the modules below it are imported.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def _allow_parts() -> None:
    """`lifecycle` is importable by parts where it is not installed with all that it needs."""
    try:
        import lifecycle  # noqa: F401
    except ModuleNotFoundError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "lifecycle"]:
            del sys.modules[name]  # what was imported before the missing one was met
        package = types.ModuleType("lifecycle")
        package.__path__ = [str(ROOT / "lifecycle")]
        sys.modules["lifecycle"] = package


_allow_parts()
sys.path.insert(0, str(HERE))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs a GPU; without one it is skipped, which `make gpu` forbids."""
    mine = [item for item in items if HERE in Path(item.path).parents]
    if mine and not _has_gpu():
        if os.environ.get("LIFECYCLE_GPU_REQUIRED"):
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
    """A process that holds GPU memory; `pid` is the topmost of its tree, `holder` the one that has the context."""

    def __init__(self, depth: int) -> None:
        command = [sys.executable, str(HERE / "holder.py"), "--depth", str(depth)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self.holder = int(self._line())

    def tell(self, words: str) -> None:
        """It has done this."""
        assert self._process.stdin is not None
        self._process.stdin.write(words + "\n")
        self._process.stdin.flush()
        if words != "quit":
            assert self._line() == "ok"

    def end(self) -> None:
        """It has ended."""
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
    """Starts processes that hold GPU memory; all have ended after the test."""
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
        """These figures belong to this name."""
        self.figures.setdefault(name, {}).update(figures)
        print(name, json.dumps(figures))


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    """Collects what the tests measure."""
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
