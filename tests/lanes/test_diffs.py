"""The diffs of docs/diffs show what a contributor touches: they apply to the tree, and each touches few files."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIFFS = ROOT / "docs" / "diffs"
#: How many files each may touch, beside tests and generated pages.
MOST = {"guard-on-facts.diff": 3, "proof-on-new-evidence.diff": 5, "probe.diff": 3}


def test_every_diff_has_a_limit() -> None:
    assert {path.name for path in DIFFS.iterdir()} == set(MOST)


@pytest.mark.parametrize("name", sorted(MOST))
def test_the_diff_applies_and_touches_few_files(name: str) -> None:
    path = DIFFS / name
    applied = subprocess.run(
        ["git", "apply", "--check", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert applied.returncode == 0, applied.stderr
    assert len(re.findall(r"^diff --git ", path.read_text(), re.MULTILINE)) <= MOST[name]
