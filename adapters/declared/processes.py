"""The processes that a user declares of an engine: pids, its URL, or a function that returns those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psutil

from lifecycle.core.errors import ConfigurationError
from lifecycle.core.readings import Process
from lifecycle.nodes.address import parse
from lifecycle.nodes.locate import find_processes
from lifecycle.nodes.processes import by_pid

from ..home import HomeInTurn
from ..server_processes import Find

#: What is declared of them. A URL may have the options `pid` and `agent`.
Declared = int | Process | str | Sequence[int | Process] | Callable[[], Any]


def finder(declared: Declared | None, name: str, home: HomeInTurn) -> Find:
    """A function of a deadline that finds them; ConfigurationError where what was declared is no process."""

    async def find(deadline_s: float) -> tuple[Process, ...] | None:
        found: Any = declared
        if callable(declared):
            outcome = await home.run("processes", declared, deadline_s)
            if outcome.what != "returned":
                raise ConfigurationError(
                    f"{name}: its processes could not be asked for: {outcome.error or outcome.what}"
                )
            found = outcome.value
        if isinstance(found, str):
            return await find_processes(parse(found).only("pid", "agent"), deadline_s=deadline_s)
        each = [found] if isinstance(found, int | Process) else list(found or ())
        return tuple(_process(process, name) for process in each) or None

    return find


def _process(given: object, name: str) -> Process:
    if isinstance(given, Process):
        return given
    if not isinstance(given, int) or isinstance(given, bool) or given <= 0:
        raise ConfigurationError(f"{name}: processes must be pids, Processes or a URL, got {given!r}")
    try:
        return by_pid(given)
    except psutil.NoSuchProcess:
        raise ConfigurationError(f"{name}: there is no process {given} on this host") from None
