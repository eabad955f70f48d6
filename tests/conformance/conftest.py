"""The table of engine and case, and which cases belong to the long lane: all but one or two of each group."""

from __future__ import annotations

import os

import pytest

from lifecycle import Rejected
from lifecycle.testing.conformance.table import Table

#: vLLM before 0.31 answers a sleep while KV alone is asleep, and does nothing: the adapter refuses to send it.
NO_SLEEP_HALF_AWAKE = pytest.mark.xfail(raises=Rejected, strict=True, reason="this version sleeps only as a whole")

#: What `make test` runs, of the first engine only: a case for each thing that the suite can find out.
QUICK = {
    "test_it_is_what_its_author_says",
    "test_update[update_weights-from-paused]",
    "test_tags_that_cannot_be_meant",
    "test_in_flight[keep]",
    "test_lost[release-answer-lost-first]",
    "test_lost[restore_kv-never-sent-last]",
    "test_deadline[release]",
    "test_cancelled[release-on-its-way]",
    "test_met_afresh[released]",
    "test_taken_over[released]",
    "test_killed[release-after-its-answer]",
}


def pytest_configure(config: pytest.Config) -> None:
    """The table is printed at the end."""
    Table.register(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every case is in the long lane, but the quick ones of the first engine of each dialect.

    Of declared verbs, which the loopback engine of the first answers, only `make long` has all.
    """
    left_out = [item for item in items if _cls(item) == "TestDeclaredVerbs" and item.name not in QUICK]
    if left_out and not os.environ.get("LIFECYCLE_TEST_LONG"):
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    for item in items:
        quick = item.name in QUICK and _cls(item) in ("TestLoopback", "TestVLLM")
        here = "test_loopback.py" in item.nodeid or "test_vllm_dialect.py" in item.nodeid
        if here and "conformance" in item.nodeid and not quick:
            item.add_marker(pytest.mark.slow)
        if _cls(item) == "TestDeclaredVerbs":
            item.add_marker(pytest.mark.slow)
        old = _cls(item) in ("TestVLLM24", "TestVLLM30")
        if old and item.name == "test_row[release-from-weights_restored]":
            item.add_marker(NO_SLEEP_HALF_AWAKE)


def _cls(item: pytest.Item) -> str:
    return getattr(getattr(item, "cls", None), "__name__", "")
