"""Engines shared by tests, each of which leaves them serving."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from loopback_client import QUICK, SLOW_STEPS, SMALL, fresh, unpause
from vllm_client import VLLM, serving


@pytest.fixture(scope="session")
def quick_process() -> Iterator[LoopbackProcess]:
    with LoopbackProcess.start(**SMALL, arguments=QUICK) as started:
        yield started


@pytest.fixture(scope="session")
def slow_process() -> Iterator[LoopbackProcess]:
    with LoopbackProcess.start(**SMALL, arguments=(*QUICK, *SLOW_STEPS, "--enable-metrics")) as started:
        yield started


@pytest.fixture
def engine(quick_process: LoopbackProcess) -> LoopbackProcess:
    """A quick engine without faults. It admits requests, also if the test before left it paused."""
    unpause(quick_process)
    return quick_process


@pytest.fixture
def slow_engine(slow_process: LoopbackProcess) -> LoopbackProcess:
    """An engine whose requests last long enough to be seen running. It admits them, as `engine` does."""
    unpause(slow_process)
    return slow_process


@pytest.fixture
def doomed() -> Iterator[LoopbackProcess]:
    """A slow engine of the test's own, which the test makes fail."""
    with fresh(*SLOW_STEPS) as started:
        yield started


@pytest.fixture(scope="session")
def vllm_process() -> Iterator[LoopbackProcess]:
    with LoopbackProcess.start(dialect=VLLM, **SMALL, arguments=QUICK) as started:
        yield started


@pytest.fixture(scope="session")
def slow_vllm_process() -> Iterator[LoopbackProcess]:
    tracking = "--enable-server-load-tracking"
    with LoopbackProcess.start(dialect=VLLM, **SMALL, arguments=(*QUICK, *SLOW_STEPS, tracking)) as started:
        yield started


@pytest.fixture
def vllm(vllm_process: LoopbackProcess) -> LoopbackProcess:
    """A quick engine that speaks vLLM's dialect, awake and serving."""
    return serving(vllm_process)


@pytest.fixture
def slow_vllm(slow_vllm_process: LoopbackProcess) -> LoopbackProcess:
    """One whose requests last long enough to be seen running, with load tracking."""
    return serving(slow_vllm_process)
