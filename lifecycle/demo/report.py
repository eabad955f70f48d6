"""The output of the demo: headings, aligned tables, and a line for each check."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from ..core.transition import Transition
from ..core.units import mib

_BOLD, _GREEN, _RED, _PLAIN = "\x1b[1m", "\x1b[32m", "\x1b[31m", "\x1b[0m"


class Report:
    """Prints each line at once, and counts the checks that held and failed."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty()
        self.failed = 0
        self.held = 0
        self._parity: list[bool] = []

    def heading(self, text: str) -> None:
        """Prints the heading of a new part."""
        self._print(f"\n{self._in(_BOLD, text)}")

    def line(self, text: str) -> None:
        """Prints a line of the present part."""
        self._print(f"  {text}")

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Prints the rows in columns; cells that begin with a digit are aligned to the right."""
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            cells = (_aligned(cell, width) for cell, width in zip(row, widths, strict=True))
            self.line("  ".join(cells).rstrip())

    def durations(self, durations_s: Mapping[str, float]) -> None:
        """Prints each phase with its duration."""
        self.table([list(durations_s), [f"{seconds:.2f} s" for seconds in durations_s.values()]])

    def check(self, expected: str, held: bool, found: str = "") -> bool:
        """Prints what was expected, whether it held and what was found. Returns whether it held."""
        self.held += held
        self.failed += not held
        word = self._in(_GREEN, "ok    ") if held else self._in(_RED, "FAILED")
        self.line(f"{word}  {expected}{f': {found}' if found else ''}")
        return held

    def parity(self, expected: str, held: bool, found: str = "") -> None:
        """Checks generated tokens. All such checks together are the parity."""
        self._parity.append(self.check(expected, held, found))

    def end(self, *, lost: int, parity_checks: int, duration_s: float) -> int:
        """Prints the result. Returns 0 where all checks held and `parity_checks` of them were on tokens, else 1."""
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


def mib_or_unknown(size_bytes: int | None) -> str:
    """Formats a size in whole MiB, or `unknown`."""
    return "unknown" if size_bytes is None else mib(size_bytes)


def returned(record: Transition) -> str:
    """Formats the bytes that a release returned, and the expected bytes of its tags."""
    return f"returned {mib_or_unknown(record.returned_bytes)} of {mib_or_unknown(record.expected_bytes)} expected"


def _aligned(cell: str, width: int) -> str:
    return cell.rjust(width) if cell[:1].isdigit() else cell.ljust(width)
