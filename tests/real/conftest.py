"""The lane of real engines and routers: collected only by `run.py` and `run_routers.py` (`make real`).

Those set `LIFECYCLE_REAL`. The tests on routers need no engine from a package, and are no part of the others' run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from lifecycle.testing.conformance.table import Table

if TYPE_CHECKING:
    from lane import Lane

_LEFT_OUT = {None: ["test_*.py"], "routers": ["test_[!r]*.py", "test_ring*.py"]}
collect_ignore_glob = _LEFT_OUT.get(os.environ.get("LIFECYCLE_REAL"), ["test_real_routers.py"])


#: Modules in an order that needs four servers: one with keys, one with a backup, one without either, and one that
#: reports a wrong size.
ORDER = (
    "test_likeness",
    "test_backup_on_sglang",
    "test_conformance_on_sglang",
    "test_calls_on_sglang",
    "test_ring_on_sglang",
    "test_sizes_on_sglang",
)


def pytest_configure(config: pytest.Config) -> None:
    """The table of the conformance suite is printed at the end."""
    Table.register(config)
    config.addinivalue_line(
        "markers", "committed_journal(name): what its drivers write goes into docs/measured/journals"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the conformance suite only the chosen cases are left, and tests that share a server follow each other."""
    from_suite = [item for item in items if item.path.name == "test_conformance_on_sglang.py"]
    if from_suite:
        from test_conformance_on_sglang import CHOSEN

        left_out = [item for item in from_suite if item.name not in CHOSEN]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    items.sort(key=lambda item: ORDER.index(item.path.stem) if item.path.stem in ORDER else len(ORDER))


@pytest.fixture(scope="session")
def lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lane]:
    """The servers of this run; none is left at its end. Fleets and the command line keep leases in one folder."""
    from lane import Lane  # not before: its modules have names that other folders of tests use too

    lane = Lane()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LIFECYCLE_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield lane
    lane.stop()


@pytest.fixture(autouse=True)
def journal_is_committed(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the drivers of a test so marked wrote is redacted and kept, where it passed."""
    mark = request.node.get_closest_marker("committed_journal")
    if mark is None:
        yield
        return
    import committed  # as above

    request.getfixturevalue("lane")  # whose folder the journal is in
    after, failed = committed.last_number(), request.session.testsfailed
    yield
    if request.session.testsfailed == failed:
        committed.write(*mark.args, after=after)
