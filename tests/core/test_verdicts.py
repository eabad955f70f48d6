"""Which verdicts hold, by the least grade that is asked for, and what becomes of one whose time is up."""

from __future__ import annotations

from typing import Any

import pytest

from lifecycle import Grade, NotApplicable, Pending, Proved, Refuted, Unmeasurable
from lifecycle.core.verdicts import holds, on_deadline


@pytest.mark.parametrize(
    ("verdict", "least", "enters"),
    [
        (Proved(grade=Grade.REPORTED), Grade.REPORTED, True),
        (Proved(grade=Grade.ACKNOWLEDGED), Grade.REPORTED, False),
        (Pending(), Grade.ASSERTED, False),
        (Refuted(), Grade.ASSERTED, False),
        (Unmeasurable(), Grade.MEASURED, False),
        (Unmeasurable(), Grade.REPORTED, False),
        (Unmeasurable(), Grade.ACKNOWLEDGED, True),
        (NotApplicable(), Grade.MEASURED, True),
    ],
)
def test_what_counts_as_holding(verdict: Any, least: Grade, enters: bool) -> None:
    assert holds(verdict, least) is enters


def test_what_is_pending_when_time_is_up_is_refuted() -> None:
    blind = Unmeasurable(reason="no probe")
    late = on_deadline(Pending(reason="1 runs", figures={"count": 1}), 2.0)
    assert late == Refuted(reason="1 runs (after 2.0 s)", figures={"count": 1})
    assert on_deadline(blind, 2.0) is blind
