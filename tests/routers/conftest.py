"""What a router had is kept in a folder of each test's own."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state folder."""
    monkeypatch.setenv("LIFECYCLE_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"
