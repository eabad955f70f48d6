"""A derandomized run draws the same examples whatever is imported, so that it passes or fails alike on each machine."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def drawn() -> list[int]:
    """Returns the numbers that a derandomized test draws."""
    numbers: list[int] = []

    @settings(derandomize=True, database=None, max_examples=200)
    @given(st.integers(0, 10**6))
    def collects(number: int) -> None:
        numbers.append(number)

    collects()
    return numbers


def test_what_is_drawn_does_not_hang_on_what_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = drawn()
    path = tmp_path / "full_of_numbers.py"
    path.write_text(f"NUMBERS = {list(range(7000, 7400, 3))}\n")
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, path.stem, module)
    assert len(before) == 200
    assert drawn() == before
