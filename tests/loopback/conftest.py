"""Engines shared by the tests that leave them as they found them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from loopback_client import QUICK, SLOW_STEPS, SMALL, fresh


@pytest.fixture(scope="session")
def engine() -> Iterator[LoopbackProcess]:
    """A quick engine without surprises."""
    with LoopbackProcess.start(**SMALL, arguments=QUICK) as started:
        yield started


@pytest.fixture(scope="session")
def slow_engine() -> Iterator[LoopbackProcess]:
    """An engine whose requests last long enough to be caught running."""
    with LoopbackProcess.start(**SMALL, arguments=(*QUICK, *SLOW_STEPS, "--enable-metrics")) as started:
        yield started


@pytest.fixture
def doomed() -> Iterator[LoopbackProcess]:
    """A slow engine of the test's own, to be killed."""
    with fresh(*SLOW_STEPS) as started:
        yield started
