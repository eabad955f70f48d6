"""The table of engine and case, and which cases belong to the long lane: all but one or two of each group."""

from __future__ import annotations

import pytest

from lifecycle.testing.conformance_table import Table

#: What `make test` runs, of the first engine only: a case for each thing that the suite can find out.
QUICK = {
    "test_it_is_what_its_author_says",
    "test_answers_differ",
    "test_row[release-from-drained]",
    "test_row[resume-from-kv_restored]",
    "test_update[update_weights-from-paused]",
    "test_each_tag_alone",
    "test_not_allowed_here[released]",
    "test_tags_that_cannot_be_meant",
    "test_nothing_is_sent_twice",
    "test_in_flight[keep]",
    "test_in_flight[abort]",
    "test_lost[release-answer-lost-first]",
    "test_lost[restore_kv-never-sent-last]",
    "test_deadline[release]",
    "test_cancelled[release-on-its-way]",
    "test_looked_at[released]",
    "test_met_afresh[released]",
    "test_taken_over[released]",
    "test_killed[release-after-its-answer]",
}


def pytest_configure(config: pytest.Config) -> None:
    """The table is printed at the end."""
    config.pluginmanager.register(Table())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every case is in the long lane, but the quick ones of the first engine."""
    for item in items:
        quick = item.name in QUICK and getattr(item, "cls", None).__name__ == "TestLoopback"
        if "test_loopback.py" in item.nodeid and "conformance" in item.nodeid and not quick:
            item.add_marker(pytest.mark.slow)
