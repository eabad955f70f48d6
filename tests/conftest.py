"""Each `async def` test runs in an event loop of its own; lines that tests report are printed at the end of the run.

Tests marked `virtual_time` run on a simulated clock: what they measure does not depend on the load of the machine.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import journals
import pytest
from virtual_time import virtually


def pytest_configure(config: pytest.Config) -> None:
    """What drivers keep of engines goes into a folder of this run, and not into the user's."""
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="lifecycle-state-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """The folder of this run is removed."""
    shutil.rmtree(os.environ["XDG_STATE_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def journals_are_checked(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the drivers of this process wrote into journals breaks no rule but those that the test provokes."""
    if request.node.get_closest_marker("changes_the_table") is not None:
        yield
        return
    marks, checked = request.node.iter_markers("provokes_violation"), journals.Checked()
    with journals.kept(checked):
        yield
    checked.must_break(frozenset(rule for mark in marks for rule in mark.args))
    request.node.user_properties.append(("journal", [checked.count, len(checked.broken)]))


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Adds a line to the summary at the end of the run, also from a pytest-xdist worker."""
    return lambda line: request.node.user_properties.append(("report", line))


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variables of this machine that configure the library are unset."""
    for name in list(os.environ):
        if name.startswith(("LIFECYCLE_", "MILES_", "RLIX_", "PYTORCH_")):
            monkeypatch.delenv(name)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the command of a module of `lifecycle.cli` with these arguments: exit code, and what it printed."""
    import typer

    def go(module: Any, *arguments: str) -> tuple[int, str]:
        app = typer.Typer(pretty_exceptions_enable=False)
        module.register(app)
        app.command("other")(lambda: None)
        name = module.__name__.rpartition(".")[2]
        result = app([name, *arguments], standalone_mode=False)
        return result, capsys.readouterr().out

    return go


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the lines that tests reported, each once."""
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    lines = [line for report in reports for name, line in report.user_properties if name == "report"]
    ends = [report for report in terminalreporter.getreports("") if report.when == "teardown"]
    journals = [value for report in ends for name, value in report.user_properties if name == "journal" and value[0]]
    if journals:
        entries, provoked = (sum(each[part] for each in journals) for part in (0, 1))
        found = f"0 violations but the {provoked} that tests provoke"
        lines.append(f"journals of {len(journals)} tests checked, {entries} entries: {found}")
    if lines:
        terminalreporter.section("reported by tests")
        for line in dict.fromkeys(lines):
            terminalreporter.line(line)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """True after an asynchronous test has run; None leaves a synchronous one to pytest."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    run = asyncio.run if pyfuncitem.get_closest_marker("virtual_time") is None else virtually
    run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True
