"""docs/measured/faults.md: what came of every point of a cycle at which a driver or an engine was killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

MARK = "fault"

_INTRO = """# Faults at every point of a cycle: the last result

Written by `make long` (`tests/lanes/faults_page.py`); do not edit. Three loopback engines go through a cycle. At each
point something is hit, and another driver brings them home by `recover(to=)`; with weights by a push, the trainer
pushes where the engine waits for it. They are home where all serve, with the tokens of the weights that they say they
have.

The points are each effect of the cycle on each engine: `before` it was sent (its intent is committed), `sent` (no reply
was read), `replied` (its record is not committed). The driver is killed at every point on every engine; elsewhere the
engines take turns.
"""

_HITS = ("driver", "engine", "driver and engine", "second driver")


@dataclass(frozen=True, slots=True)
class Point:
    """What came of one point. `way` is where another driver found the engine, and how it came home from there."""

    of: str
    effect: str
    boundary: str
    hit: str
    way: str
    came: str


def points(lines: Iterable[str]) -> list[Point]:
    """The lines that are of points."""
    parts = (line.split(" | ") for line in lines)
    return [Point(*each[1:]) for each in parts if each[0] == MARK and len(each) == 7]


def page(found: Sequence[Point], facts: Mapping[str, str]) -> str:
    """The whole page: the sums, and a table of each source and sizes, with a column for each that is hit."""
    came = Counter(each.came for each in found)
    rows = {
        **facts,
        "command": "`make long`",
        "result": f"{len(found)} points: {came['home']} home, {came['refused']} refused, {came['FAILED']} FAILED",
    }
    parts = [_INTRO, "\n| | |\n|---|---|\n", *(f"| {name} | {value} |\n" for name, value in rows.items())]
    for of in sorted({each.of for each in found}):
        mine = [each for each in found if each.of == of]
        home = sum(each.came == "home" for each in mine)
        parts.append(f"\n## {of}\n\nHome: {home} of {len(mine)}.\n\n")
        parts += _table(mine)
    return "".join(parts)


def _table(mine: Sequence[Point]) -> list[str]:
    hits = [hit for hit in _HITS if any(each.hit == hit for each in mine)]
    lines = [f"| effect | point | {' | '.join(hits)} |\n", f"|---|---|{'---|' * len(hits)}\n"]
    for effect, boundary in dict.fromkeys((each.effect, each.boundary) for each in mine):
        here = [each for each in mine if (each.effect, each.boundary) == (effect, boundary)]
        cells = [_cell([each for each in here if each.hit == hit]) for hit in hits]
        lines.append(f"| {effect} | {boundary} | {' | '.join(cells)} |\n")
    return lines


def _cell(here: Sequence[Point]) -> str:
    """How many came home, and from where; or what became of them."""
    ways = Counter(each.way if each.came == "home" else f"**{each.came}** ({each.way})" for each in here)
    return ", ".join(f"{count} {way}" for way, count in sorted(ways.items()))
