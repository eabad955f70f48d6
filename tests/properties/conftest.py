"""A derandomized run draws the same examples whatever else is imported beside it."""

from __future__ import annotations

import pytest
from hypothesis.internal.conjecture.providers import HypothesisProvider


@pytest.fixture(autouse=True)
def _no_constants_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypothesis draws one number in twenty out of the source of imported modules, and has no setting for it."""
    monkeypatch.setattr(HypothesisProvider, "_maybe_draw_constant", lambda *args, **how: None)
