"""One Ray for all of these tests, sized for two cores; without the package each file is skipped with that reason.

`make ray` installs it. Whatever this Ray has started is gone once it is shut down, or the run fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

#: This folder is named ray too, and is found as an empty package where the real one is missing.
_RAY = find_spec("ray")
HAS_RAY = _RAY is not None and _RAY.origin is not None

#: Seconds in which everything that Ray has started ends.
ENDS_S = 30.0


class _Skipped(pytest.Module):
    def collect(self):
        pytest.skip("ray is not installed; make ray installs it and runs this", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Where Ray is missing, a module that only skips."""
    return None if HAS_RAY else _Skipped.from_parent(parent, path=module_path)


@pytest.fixture(scope="session")
def ray() -> Iterator[Any]:
    """A Ray of this machine. CPUs are logical; its object store is small, since /dev/shm of a container may be."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    before = set(psutil.Process().children(recursive=True))
    ray.init(
        num_cpus=16,
        object_store_memory=80 << 20,
        include_dashboard=False,
        namespace="lifecycle-tests",
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},  # where the classes of actors are
    )
    try:
        yield ray
    finally:
        started = set(psutil.Process().children(recursive=True)) - before
        started |= {each for one in started for each in _below(one)}
        ray.shutdown()
        _, left = psutil.wait_procs(started, timeout=ENDS_S)
        assert not left, f"Ray has started these, and they have not ended: {left}"


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.fixture
def actor_of(ray: Any) -> Iterator[Callable[..., Any]]:
    """Starts an actor of a class, with what its constructor takes; all of them are killed after the test.

    `options`: those of the actor.
    """
    started: list[Any] = []

    def start(kind: type, *given: Any, options: dict[str, Any] | None = None, **named: Any) -> Any:
        started.append(ray.remote(num_cpus=0)(kind).options(**(options or {})).remote(*given, **named))
        return started[-1]

    yield start
    for each in started:
        ray.kill(each)
