"""What the demo prints: headings, aligned tables, and a line for every check."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from ..core.transition import Transition
from ..core.units import MIB

_BOLD, _GREEN, _RED, _PLAIN = "\x1b[1m", "\x1b[32m", "\x1b[31m", "\x1b[0m"


class Report:
    """Prints as things happen, and remembers what did not hold."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty()
        self.failed = 0
        self.held = 0
        self._parity: list[bool] = []

    def heading(self, text: str) -> None:
        """A new part begins."""
        self._print(f"\n{self._in(_BOLD, text)}")

    def line(self, text: str) -> None:
        """A line of the present part."""
        self._print(f"  {text}")

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """The rows in columns, the first of them their names; what looks like a figure stands to the right."""
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            cells = (_aligned(cell, width) for cell, width in zip(row, widths, strict=True))
            self.line("  ".join(cells).rstrip())

    def durations(self, durations_s: Mapping[str, float]) -> None:
        """Each phase with its duration."""
        self.table([list(durations_s), [f"{seconds:.2f} s" for seconds in durations_s.values()]])

    def check(self, expected: str, held: bool, found: str = "") -> bool:
        """A line that says what was expected, whether it held and what was found; returns whether it held."""
        self.held += held
        self.failed += not held
        word = self._in(_GREEN, "ok    ") if held else self._in(_RED, "FAILED")
        self.line(f"{word}  {expected}{f': {found}' if found else ''}")
        return held

    def parity(self, expected: str, held: bool, found: str = "") -> None:
        """A check of which tokens were generated; all of these together are the parity."""
        self._parity.append(self.check(expected, held, found))

    def end(self, *, lost: int, parity_checks: int, duration_s: float) -> int:
        """The last lines; 0 if everything held, 1 otherwise. `parity_checks` had to be made."""
        same = len(self._parity) == parity_checks and all(self._parity)
        of = f"{sum(self._parity)} of {parity_checks} comparisons of tokens"
        self.line(self._in(_GREEN, f"parity: ok ({of})") if same else self._in(_RED, f"parity: FAILED ({of})"))
        self.line(self._in(_GREEN if not lost else _RED, f"lost: {lost}"))
        if self.failed or lost or not same:
            self.line(self._in(_RED, f"FAILED: {self.failed} of {self.failed + self.held} checks, {duration_s:.1f} s"))
            return 1
        self.line(self._in(_GREEN, f"all {self.held} checks held, {duration_s:.1f} s"))
        return 0

    def _in(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_PLAIN}" if self._colour else text

    def _print(self, text: str) -> None:
        print(text, flush=True)


def mib(size_bytes: int | None) -> str:
    """The size in whole MiB."""
    return "unknown" if size_bytes is None else f"{round(size_bytes / MIB)} MiB"


def returned(record: Transition) -> str:
    """What a release gave back, against what its tags were expected to hold."""
    return f"returned {mib(record.returned_bytes)} of {mib(record.expected_bytes)} expected"


def _aligned(cell: str, width: int) -> str:
    return cell.rjust(width) if cell[:1].isdigit() else cell.ljust(width)
