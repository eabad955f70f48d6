"""The lane of real engines: collected only by `run.py` (`make real`), which sets `LIFECYCLE_REAL`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from lane import Lane

collect_ignore_glob = [] if os.environ.get("LIFECYCLE_REAL") else ["test_*.py"]


@pytest.fixture(scope="session")
def lane() -> Iterator[Lane]:
    """The servers of this run; none is left at its end."""
    lane = Lane()
    yield lane
    lane.stop()
