"""The lane of real engines and routers: collected only by `run.py`, `run_vllm.py`, `run_tokenspeed.py` and
`run_routers.py` (`make real`).

Those set `LIFECYCLE_REAL`, each to another word, and take the tests of their own engines alone. The tests on routers
need no engine from a package.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from lifecycle.testing.conformance.table import Table

if TYPE_CHECKING:
    from lane import Lane
    from one_server import OneServer
    from vllm_lane import VLLMLane

Servers = TypeVar("Servers", bound="OneServer[Any]")

#: The modules of each lane, by what `LIFECYCLE_REAL` says; without it none is collected.
_MODULES = {
    "sglang": ("test_likeness.py", "test_*_on_sglang.py"),
    "vllm": ("test_*_on_vllm.py",),
    "tokenspeed": ("test_*_on_tokenspeed.py",),
    "vllm-in-process": ("test_vllm_*in_process.py",),
    "sglang-in-process": ("test_sglang_in_process.py",),
    "routers": ("test_*routers*.py",),
}


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """A lane collects its own modules alone."""
    mine = _MODULES.get(os.environ.get("LIFECYCLE_REAL", ""), ())
    module = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if module and not any(collection_path.match(each) for each in mine) else None


#: Modules in an order that needs five servers of SGLang: one with keys, one with metrics, one with a backup, one
#: without any of that, and one that reports a wrong size. Of vLLM it needs three: one with a key, one without, and one
#: without development mode.
ORDER = (
    "test_likeness",
    "test_fates_on_sglang",
    "test_backup_on_sglang",
    "test_conformance_on_sglang",
    "test_calls_on_sglang",
    "test_abort_on_sglang",
    "test_ring_on_sglang",
    "test_sizes_on_sglang",
    "test_key_on_vllm",
    "test_likeness_on_vllm",
    "test_ring_on_vllm",
    "test_flight_on_vllm",
    "test_fates_on_vllm",
    "test_conformance_on_vllm",
    "test_death_on_vllm",
    "test_mode_on_vllm",
)


def pytest_configure(config: pytest.Config) -> None:
    """The table of the conformance suite is printed at the end."""
    Table.register(config)
    config.addinivalue_line(
        "markers", "committed_journal(name): what its drivers write goes into docs/measured/journals"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the conformance suite only the chosen cases are left, and tests that share a server follow each other."""
    from_suite: list[Any] = [item for item in items if item.path.name.startswith("test_conformance_on_")]
    if from_suite:
        left_out = [item for item in from_suite if item.name not in item.module.CHOSEN]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    items.sort(key=lambda item: ORDER.index(item.path.stem) if item.path.stem in ORDER else len(ORDER))


@pytest.fixture(scope="session")
def lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lane]:
    """The servers of SGLang of this run."""
    from lane import Lane  # not before: its modules have names that other folders of tests use too

    yield from _until_the_end(Lane(), tmp_path_factory)


@pytest.fixture(scope="session")
def vllm_lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMLane]:
    """The servers of vLLM of this run."""
    from vllm_lane import VLLMLane  # as above

    yield from _until_the_end(VLLMLane(), tmp_path_factory)


def _until_the_end(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The servers of a run, of which none is left at its end. Fleets and commands keep leases in one folder."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LIFECYCLE_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield servers
    servers.stop()


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
