"""The page of the long lanes says what was run and what came of it, and `make help` names every target."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import record_long
from record_long import Lane, Result, figures, page, reported

FACTS = {"commit": "0123456789", "date": "2026-01-01", "machine": "Linux", "versions": "Python 3.11"}
LINES = ("EngineMachine: 21 rules, 208 examples, 9201 rules run", "    EngineMachine asked: what is known is true: 7")
ROOT = record_long.ROOT


def test_figures_of_several_runs_are_added_up() -> None:
    assert figures((*LINES, *LINES, "a line without a number")) == {
        "EngineMachine examples": 416,
        "EngineMachine rules run": 18402,
        "EngineMachine asked: what is known is true": 14,
    }


def test_the_page_names_commit_seed_and_every_failed_run() -> None:
    results = [Result("engines", 7, True, 10.0, LINES), Result("engines", 8, False, 2.0)]
    text = page(results, seed=7, seconds=90.0, facts=FACTS)
    assert "| commit | 0123456789 |" in text
    assert "| command | `make long SEED=7` |" in text
    assert "| result | 1 of 2 runs passed in 1.5 minutes; FAILED: engines (seed 8) |" in text
    assert "| EngineMachine rules run | 9,201 |" in text


def test_a_lane_alone_has_its_seeds_and_is_added_to_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_long, "LANES", (Lane("one", (), {}, runs=2), Lane("other", (), {}, runs=2)))
    monkeypatch.setattr(record_long, "run", lambda lane, seed: Result(lane.name, seed, seed != 7, 1.0, LINES))
    monkeypatch.setattr(record_long, "where", lambda: FACTS)
    output = tmp_path / "long.md"
    assert record_long.main(["--seed", "5", "--output", str(output)]) == 1
    before = output.read_text()
    monkeypatch.setattr(record_long, "run", lambda lane, seed: Result(lane.name, seed, True, 1.0, LINES))
    assert record_long.main(["--seed", "5", "--output", str(output), "--only", "other"]) == 0
    assert output.read_text().startswith(before)
    assert "## other, again at 0123456789, 2026-01-01 (seeds 7, 8)\n\n2 of 2 runs passed." in output.read_text()


def test_the_table_of_the_conformance_suite_is_written_once_all_of_its_lanes_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{record_long.CONFORMANCE}: {each}" for each in ("a", "b")]
    cell = record_long.conformance.Cell("a", "row", "yes")
    monkeypatch.setattr(record_long, "LANES", tuple(Lane(name, (), {}, runs=1) for name in (*names, "other")))
    monkeypatch.setattr(record_long, "run", lambda lane, seed: Result(lane.name, seed, True, 1.0, (), (cell,)))
    monkeypatch.setattr(record_long, "where", lambda: FACTS)
    output, table = tmp_path / "long.md", tmp_path / "conformance.md"
    output.touch()
    for only, written in (("other", False), (names[0], False), (record_long.CONFORMANCE, True)):
        assert record_long.main(["--seed", "5", "--output", str(output), "--only", only]) == 0
        assert table.exists() is written
    assert "2 of 2 that apply passed" in table.read_text()


def test_every_file_of_the_conformance_suite_is_a_lane() -> None:
    files = {
        arguments
        for each in record_long.LANES
        if each.name.startswith(record_long.CONFORMANCE)
        for arguments in each.arguments
    }
    assert files == {str(each.relative_to(ROOT)) for each in (ROOT / "tests" / "conformance").glob("test_*.py")}


def test_a_lane_that_is_none_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        record_long.main(["--only", "no such lane"])
    assert "no lane has 'no such lane' in its name: faults at every point" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_has_what_its_tests_reported(tmp_path: Path) -> None:
    test = tmp_path / "test_it.py"
    test.write_text("def test_it(request):\n    request.node.user_properties.append(('report', 'asked: 3'))\n")
    junit = tmp_path / "junit.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={junit}", str(test)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert reported(junit) == ("asked: 3",)
    assert reported(tmp_path / "missing.xml") == ()


@pytest.mark.slow
def test_a_failed_lane_is_written_down_printed_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lane = Lane("nothing", ("tests/lanes/no_such_file.py",), {}, runs=1)
    monkeypatch.setattr(record_long, "LANES", (lane,))
    output = tmp_path / "long.md"
    assert record_long.main(["--seed", "5", "--output", str(output)]) == 1
    assert "FAILED: nothing (seed 5)" in output.read_text()
    assert "no_such_file.py" in capsys.readouterr().out


@pytest.mark.parametrize("lane", record_long.LANES, ids=lambda lane: lane.name)
@pytest.mark.slow
def test_every_lane_selects_a_test(lane: Lane) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", *lane.arguments]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_make_help_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    named = set(re.findall(r'@echo "make (\w+)', makefile))
    assert set(phony.split()) - {"help", "carried"} == named
