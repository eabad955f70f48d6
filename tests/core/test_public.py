"""`import lifecycle` is cheap: its names are imported when one of them is first asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lifecycle
from lifecycle.fleet import public


def printed(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_process_that_needs_a_part_imports_that_part_alone() -> None:
    part = "import sys, lifecycle.core.units; print(*sorted(m for m in sys.modules if m[:10] == 'lifecycle.'))"
    assert printed(part) == "lifecycle.core lifecycle.core.units"


@pytest.mark.parametrize(
    "code",
    ["from lifecycle import Fleet", "import lifecycle; Fleet = lifecycle.Fleet", "from lifecycle import *"],
    ids=["from", "attribute", "star"],
)
def test_a_name_is_there_however_it_is_asked_for(code: str) -> None:
    assert printed(f"{code}\nprint(Fleet.__module__)") == "lifecycle.fleet.fleet"


def test_every_public_name_is_the_same_object() -> None:
    assert set(public.__all__) <= set(dir(lifecycle))
    assert all(getattr(lifecycle, name) is getattr(public, name) for name in public.__all__)


def test_a_name_that_is_not_there_is_named() -> None:
    with pytest.raises(AttributeError, match="module 'lifecycle' has no attribute 'Flet'"):
        _ = lifecycle.Flet
