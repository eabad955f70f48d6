"""Memory that grows from cycle to cycle, noticed before it reaches the threshold.

Source: 4.1 -> 11.6 -> 25 GiB after three releases of one engine, each within its threshold until the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from ..core.facts import Grade, Tag
from ..core.policy import Policy
from ..core.units import MIB
from ..core.verdicts import Condition, Proved, Refuted, Verdict

#: How many figures in a row must grow before it is called a slope.
ENOUGH = 3

#: How many figures are kept.
KEPT = 8

#: A figure of the verdict on a release, the condition that watches it, and what it is called.
_WATCHED = (
    ("resident_bytes", "residual_slope", "what it keeps after a release"),
    ("others_bytes", "cotenant_slope", "what others hold of its device after a release"),
)


Series = Mapping[tuple[str, frozenset[Tag]], tuple[int, ...]]


def after_release(
    series: Series, tags: frozenset[Tag], verdict: Verdict | None, policy: Policy
) -> tuple[Series, Mapping[str, Condition]]:
    """The figures of an engine's proved releases with those of this one, and the conditions, by name, that it leaves.

    Figures are compared with those of releases of the same tags only.
    """
    if not isinstance(verdict, Proved):
        return series, {}
    kept, conditions = dict(series), {}
    for figure, condition, called in _WATCHED:
        size_bytes = verdict.figures.get(figure)
        if size_bytes is None:
            continue
        row = (*kept.get((figure, tags), ()), int(size_bytes))[-KEPT:]
        kept[figure, tags] = row
        limit = policy.threshold_bytes if figure == "resident_bytes" else None
        conditions[condition] = Condition(slope(row, called, limit_bytes=limit))
    return kept, conditions


def slope(series: Sequence[int], called: str, *, limit_bytes: int | None = None) -> Verdict:
    """Refuted where the last figures grow, each above the one before, by more than measuring errs.

    That is more than 64 MiB, and more than 5 % of the first of them. It must be so without the largest step too: an
    allocator that warms up grows once, a leak grows again. `limit_bytes` is what they must not reach.
    """
    growing = _growing(series)
    figures = {"series_bytes": tuple(series)}
    if len(growing) < ENOUGH or _repeated(growing) <= max(64 * MIB, growing[0] // 20):
        return Proved(grade=Grade.MEASURED, reason=f"{called} does not grow", figures=figures)
    report = " -> ".join(f"{size / (1 << 30):.2f}" for size in growing)
    reason = f"{called} grows from cycle to cycle: {report} GiB{_when(growing, limit_bytes)}"
    return Refuted(reason=reason, figures=figures)


def _growing(series: Sequence[int]) -> Sequence[int]:
    """The last figures, as far back as each is above the one before."""
    begin = len(series) - 1
    for index, (before, after) in reversed(list(enumerate(pairwise(series)))):
        if after <= before:
            break
        begin = index
    return series[max(0, begin) :]


def _repeated(growing: Sequence[int]) -> int:
    """By how much they grow without the largest step."""
    steps = [after - before for before, after in pairwise(growing)]
    return sum(steps) - max(steps)


def _when(growing: Sequence[int], limit_bytes: int | None) -> str:
    if limit_bytes is None:
        return ""
    step = (growing[-1] - growing[0]) / (len(growing) - 1)
    left = max(0, int((limit_bytes - growing[-1]) // step) + 1)
    return f"; at this rate the threshold of {limit_bytes / (1 << 30):.2f} GiB is passed in {left} more"
