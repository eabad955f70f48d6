"""`async def` tests run each in an event loop of their own; what tests tell is printed at the end.

Those marked `virtual_time` run on a clock that jumps: what they measure does not hang on how busy the machine is.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable
from typing import Any

import pytest
from virtual_time import virtually


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """What a test has to tell stands at the end of the run, also where workers ran it."""
    return lambda line: request.node.user_properties.append(("told", line))


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine's settings reaches a test."""
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
    """Prints what tests had to tell."""
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    lines = [line for report in reports for name, line in report.user_properties if name == "told"]
    if lines:
        terminalreporter.section("told by tests")
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
