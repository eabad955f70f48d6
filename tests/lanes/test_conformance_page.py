"""The page of the conformance suite has every case of every engine, and says which did not pass."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conformance_page import Cell, cells, page

CELLS = [Cell("a", "row[pause]", "yes"), Cell("a", "lost[drain]", "-"), Cell("b", "row[pause]", "**NO**")]


def test_the_page_has_every_case_and_names_what_failed() -> None:
    text = page(CELLS, {"commit": "0123456789"})
    assert "| result | 1 of 2 that apply passed; FAILED: row[pause] on b |" in text
    assert "| case | a | b |\n" in text
    assert "| row[pause] | yes | **NO** |\n" in text
    assert "| lost[drain] | - |  |\n" in text
    assert "| passed of those that apply | 1 of 1 | 0 of 1 |\n" in text


TESTS = """
import pytest

@pytest.fixture(autouse=True)
def named(request):
    request.node.user_properties.append(("conformance", ("an engine", request.node.name)))

def test_passes(): pass
def test_skips(): pytest.skip("no")
def test_fails(): assert False
def test_other(request): request.node.user_properties.clear()
"""


@pytest.mark.slow
def test_the_cases_are_read_from_what_pytest_writes(tmp_path: Path) -> None:
    test, junit = tmp_path / "test_it.py", tmp_path / "junit.xml"
    test.write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={junit}", str(test)]
    subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, timeout=60)
    assert cells(junit) == tuple(
        Cell("an engine", case, word) for case, word in (("passes", "yes"), ("skips", "-"), ("fails", "**NO**"))
    )
    assert cells(tmp_path / "missing.xml") == ()
