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
from contextlib import nullcontext
from pathlib import Path
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


@pytest.fixture(scope="session")
def journal_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[journals.Files]:
    """The store files of this run. What no test's own folder has is read at the end, for the last test."""
    files = journals.Files()
    yield files
    left = files.read(tmp_path_factory.getbasetemp(), Path(os.environ["XDG_STATE_HOME"]))
    for item in _last_item:  # none, where every test was skipped before
        item.user_properties.append(("journal", [left.count, 0, files.of_others, 0]))
    left.must_break(frozenset())


_last_item: list[pytest.Item] = []


@pytest.fixture(autouse=True)
def journals_are_checked(request: pytest.FixtureRequest, journal_files: journals.Files) -> Iterator[None]:
    """What the drivers of a test wrote into journals breaks no rule but those that it provokes."""
    _last_item[:] = [request.node]
    checked, places = journals.Checked(), [Path(os.environ["XDG_STATE_HOME"])]
    marked = request.node.get_closest_marker("changes_the_table") is not None
    values = request.node.funcargs  # pytest takes them from the item where a signal ends the run
    with nullcontext() if marked else journals.kept(checked):
        yield
    if "tmp_path" in values:
        places.append(values["tmp_path"])
    others = journal_files.read(*places)
    if marked:
        return
    checked.broken = {**others.broken, **checked.broken}
    checked.must_break(
        frozenset(rule for mark in request.node.iter_markers("provokes_violation") for rule in mark.args)
    )
    figures = [checked.count + others.count, len(checked.broken), 0, 1]
    request.node.user_properties.append(("journal", figures))


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
    figures = [
        value for report in ends for name, value in report.user_properties if name == "journal" and any(value[:3])
    ]
    if figures:
        entries, provoked, files, tests = (sum(each[part] for each in figures) for part in range(4))
        found = f"0 violations but the {provoked} that tests provoke"
        of_others = f"{files} files of other processes among them"
        lines.append(f"journals of {tests} tests checked, {entries} entries, {of_others}: {found}")
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
