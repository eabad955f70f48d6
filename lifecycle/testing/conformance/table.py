"""A pytest plugin that prints the results of the conformance suite: a line for each case, a column for each engine.

# conftest.py
from lifecycle.testing.conformance.table import Table

def pytest_configure(config):
    Table.register(config)
"""

from __future__ import annotations

import pytest

NAME = "conformance-table"
WORDS = {"passed": "yes", "failed": "NO", "skipped": "-"}


class Table:
    """Collects the outcome of every case; `lines` is the table."""

    def __init__(self) -> None:
        self._cells: dict[str, dict[str, str]] = {}
        self._engines: list[str] = []

    @classmethod
    def register(cls, config: pytest.Config) -> None:
        """Registers the plugin once, however often it is called."""
        if not config.pluginmanager.has_plugin(NAME):
            config.pluginmanager.register(cls(), NAME)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes the outcome of a conformance case; the worst of its phases counts."""
        match dict(report.user_properties).get("conformance"):
            case (str(engine), str(case)) if report.when == "call" or not report.passed:
                self._note(engine, case.removeprefix("test_"), WORDS[report.outcome])

    def _note(self, engine: str, case: str, word: str) -> None:
        if engine not in self._engines:
            self._engines.append(engine)
        row = self._cells.setdefault(case, {})
        if row.get(engine) != "NO":
            row[engine] = word

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Prints the table where any case ran."""
        for line in self.lines():
            terminalreporter.write_line(line)

    def lines(self) -> list[str]:
        """Returns a header, a line for each case, and for each engine how many of its cases passed."""
        if not self._cells:
            return []
        wide = max(len(case) for case in self._cells)
        columns = [(engine, max(len(engine), 7)) for engine in self._engines]
        lines = [" ".join(["case".ljust(wide), *(engine.ljust(width) for engine, width in columns)])]
        for case, row in self._cells.items():
            cells = (row.get(engine, "").ljust(width) for engine, width in columns)
            lines.append(" ".join([case.ljust(wide), *cells]).rstrip())
        totals = (self._total(engine).ljust(width) for engine, width in columns)
        return [*lines, " ".join(["passed of those that apply".ljust(wide), *totals]).rstrip()]

    def _total(self, engine: str) -> str:
        outcomes = [row[engine] for row in self._cells.values() if row.get(engine, "-") != "-"]
        return f"{outcomes.count('yes')}/{len(outcomes)}"
