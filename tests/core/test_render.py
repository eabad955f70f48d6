"""The generated pages: the failure table that a caller passes in, and diagrams that follow from the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from lifecycle.cli.app import run
from lifecycle.core.states import TRANSIENT, State
from lifecycle.fleet.failure_policy import all_rows
from lifecycle.render.diagram import arrows, draw
from lifecycle.render.pages import drift, failure_table, lifecycle_page, write
from lifecycle.rules.table import OPERATIONS

FAILURES = (
    {"phase that failed": "close router", "the others": "reopen all", "the failed one": "routed is refuted"},
    {"phase that failed": "Resume | answers", "the others": "serve", "the failed one": "closed again"},
)


def test_the_failure_table_has_a_line_a_row_under_the_headings_of_the_first() -> None:
    assert failure_table(FAILURES).splitlines() == [
        "| phase that failed | the others | the failed one |",
        "|---|---|---|",
        "| close router | reopen all | routed is refuted |",
        "| Resume \\| answers | serve | closed again |",
    ]


def test_a_failure_table_without_rows_or_with_other_headings_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        failure_table([])
    with pytest.raises(ValueError, match="row 2 of the failure table has phase, not phase that failed"):
        failure_table([FAILURES[0], {"phase": "Drain"}])


def test_the_page_has_the_failure_table_only_where_it_is_given() -> None:
    assert "## When some engines fail" not in lifecycle_page()
    assert failure_table(FAILURES) in lifecycle_page(FAILURES)


def test_a_changed_failure_table_is_drift(tmp_path: Path) -> None:
    assert len(write(tmp_path, FAILURES)) == 3
    assert drift(tmp_path, FAILURES) == []
    assert drift(tmp_path, FAILURES[:1]) == [tmp_path / "lifecycle.md"]


def test_the_command_line_writes_the_failure_policy_into_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["diagram", "--docs", str(tmp_path)]) == 0
    page = tmp_path / "lifecycle.md"
    section = page.read_text().partition("## When some engines fail")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    assert lines[0] == "| policy | move | phase that failed | the others | the one that failed |"
    assert lines[1:] == [f"| {' | '.join(row)} |" for row in all_rows()]
    page.write_text(page.read_text().replace("go on to serving", "stay"))
    assert run(["diagram", "--docs", str(tmp_path), "--check"]) == 1
    assert "lifecycle.md is out of date" in capsys.readouterr().out


def test_the_full_diagram_draws_every_row_and_every_success_and_nothing_that_all_states_have() -> None:
    drawn = {(source, dest) for source, dest, _ in arrows("full")}
    assert drawn == {(row.source, row.via) for row in OPERATIONS} | {(row.via, row.dest) for row in OPERATIONS}
    assert {row.via for row in OPERATIONS} == TRANSIENT
    assert not {label for _, _, label in arrows("full")} & {"failed", "contradicted"}
    assert State.FAILED not in {state for pair in drawn for state in pair}


def test_an_unknown_diagram_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match="no diagram 'half' as 'svg': one of ring, full as mermaid, svg, table"):
        draw("half", "svg")
