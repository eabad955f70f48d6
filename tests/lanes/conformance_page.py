"""docs/measured/conformance.md: every case of the conformance suite on every engine of tests/conformance."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

_INTRO = """# The conformance suite: every case on every engine

Written by `make long` (`tests/lanes/conformance_page.py`); do not edit. The cases of `lifecycle.testing.conformance` on
every engine of `tests/conformance`. `-`: the case does not apply to that engine, which the test says in its reason.
"""

#: By the element of a junit file that a test which did not pass has.
_WORDS = {"failure": "**NO**", "error": "**NO**", "skipped": "-"}


@dataclass(frozen=True, slots=True)
class Cell:
    """What came of one case on one engine."""

    engine: str
    case: str
    word: str


def cells(junit: Path) -> tuple[Cell, ...]:
    """The conformance cases in a junit file of pytest, by the property that names engine and case."""
    return tuple(_cells(junit)) if junit.exists() else ()


def _cells(junit: Path) -> Iterator[Cell]:
    for test in ElementTree.parse(junit).iter("testcase"):
        for each in test.iter("property"):
            if each.get("name") == "conformance":
                engine, case = ast.literal_eval(each.get("value", ""))
                word = next((_WORDS[part.tag] for part in test if part.tag in _WORDS), "yes")
                yield Cell(engine, case.removeprefix("test_"), word)


def page(found: Sequence[Cell], facts: Mapping[str, str]) -> str:
    """The whole page: the counts of each engine, and the table of cases and engines."""
    engines = list(dict.fromkeys(each.engine for each in found))
    words = {(each.engine, each.case): each.word for each in found}
    passed = sum(each.word == "yes" for each in found)
    failed = [f"{each.case} on {each.engine}" for each in found if each.word not in ("yes", "-")]
    result = f"{passed} of {sum(each.word != '-' for each in found)} that apply passed"
    rows = {**facts, "command": "`make long`", "result": result + (f"; FAILED: {', '.join(failed)}" if failed else "")}
    parts = [_INTRO, "\n| | |\n|---|---|\n", *(f"| {name} | {value} |\n" for name, value in rows.items())]
    parts += [f"\n| case | {' | '.join(engines)} |\n", f"|---|{'---|' * len(engines)}\n"]
    for case in dict.fromkeys(each.case for each in found):
        row = (words.get((engine, case), "") for engine in engines)
        parts.append(f"| {case} | {' | '.join(row)} |\n")
    totals = (_total([each.word for each in found if each.engine == engine]) for engine in engines)
    return "".join([*parts, f"| passed of those that apply | {' | '.join(totals)} |\n"])


def _total(words: Sequence[str]) -> str:
    return f"{words.count('yes')} of {len(words) - words.count('-')}"
