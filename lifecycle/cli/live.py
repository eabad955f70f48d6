"""What is seen while a command runs: a live table where there is a terminal, plain lines where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..core.observer import BaseObserver
from ..core.states import RING, State
from ..core.transition import Transition
from .output import printable, say
from .report import phase_line

_STYLE = {State.SERVING: "green", State.FAILED: "red", State.GONE: "red", State.RELEASED: "cyan"}


class Lines(BaseObserver):
    """Prints a line for every stable state that an engine enters."""

    def transition(self, record: Transition) -> None:
        """A line, at once."""
        if record.dest.stable and record.source is not State.DETACHED:
            say([phase_line(record)])


class LiveTable(BaseObserver):
    """Redraws a table of engines: where each is on the ring, since when, and what its last step took."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[Transition, str]] = {}
        self._live: Any = None

    def transition(self, record: Transition) -> None:
        """The engine's row shows where it is now."""
        last = self._rows.get(record.engine, (record, ""))[1]
        if record.command and record.dest.stable:
            last = f"{record.command} {record.duration_s:.2f} s"
        self._rows[record.engine] = (record, last)
        if self._live is not None:
            self._live.refresh()

    def __rich__(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for name in ("ENGINE", "GROUP", "STATE", "PROGRESS", "SINCE", "LAST STEP", "NOTE"):
            table.add_column(name, overflow="fold")
        for record, last in self._rows.values():
            style = _STYLE.get(record.dest, "yellow")
            table.add_row(
                Text(printable(record.engine)),
                Text(printable(record.group)),
                Text(str(record.dest), style),
                _progress(record.dest, sys.stdout.encoding or "utf-8"),
                f"{time.monotonic() - record.at_s:.1f} s",
                last,
                Text(printable(record.reason) if record.dest in (State.FAILED, State.GONE) else ""),
            )
        return table

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The table stands on the terminal, and stays when the command has ended."""
        from rich.live import Live

        with Live(self, refresh_per_second=8) as self._live:
            yield
        self._live = None


def _progress(state: State, encoding: str) -> str:
    """How far round the ring it is: a filled dot for every state reached."""
    try:
        "●○…".encode(encoding)
        filled, empty, moving = "●", "○", "…"
    except UnicodeEncodeError:
        filled, empty, moving = "#", ".", "..."
    if state not in RING:
        return moving if not state.stable else "-"
    reached = RING.index(state) + 1
    return filled * reached + empty * (len(RING) - reached)


@contextmanager
def watching(*, quiet: bool) -> Iterator[Sequence[BaseObserver]]:
    """The observers that show what goes on: none where the output is for a program."""
    if quiet:
        yield []
    elif sys.stdout.isatty():
        table = LiveTable()
        with table.shown():
            yield [table]
    else:
        yield [Lines()]
