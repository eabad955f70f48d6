"""The lane of real engines: collected only by `run.py` (`make real`), which sets `LIFECYCLE_REAL`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from lane import Lane

from lifecycle.testing.conformance_table import Table

collect_ignore_glob = [] if os.environ.get("LIFECYCLE_REAL") else ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    """The table of the conformance suite is printed at the end."""
    config.pluginmanager.register(Table())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the conformance suite only the chosen cases are left."""
    from_suite = [item for item in items if item.path.name == "test_conformance_on_sglang.py"]
    if from_suite:
        from test_conformance_on_sglang import CHOSEN

        left_out = [item for item in from_suite if item.name not in CHOSEN]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def lane() -> Iterator[Lane]:
    """The servers of this run; none is left at its end."""
    lane = Lane()
    yield lane
    lane.stop()
