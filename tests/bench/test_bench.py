"""The table, its targets, and what `make long` compares; the page of calls."""

from __future__ import annotations

import bench
import calls_page
import pytest
import results
from results import Row


def test_a_row_is_met_by_its_ratio() -> None:
    assert (Row("P1", "a", 2.0, 1.0, target=2).ratio, Row("P1", "a", 2.0, 1.0, target=2).met) == (2.0, "met")
    assert Row("P1", "a", 2.1, 1.0, target=2).met == "missed"
    assert Row("P1", "calls", 51, 12, value=51, target=20).met == "missed"
    assert Row("P1", "told alone", 2.0, 1.0).met == ""


def test_a_row_without_a_figure_has_missed_its_target_and_says_why() -> None:
    assert Row("connect", "of 256", target=2, why="it took too long").met == "missed (it took too long)"


def test_a_ratio_twice_the_committed_one_is_worse() -> None:
    committed = {"rows": [{"part": "P1", "what": "a", "ratio": 2.0}, {"part": "P2", "what": "b", "ratio": 1.0}]}
    assert results.worse([Row("P1", "a", 4.0, 1.0), Row("P3", "new", 9.0, 1.0)], committed) == []
    assert results.worse([Row("P1", "a", 4.1, 1.0)], committed) == [
        "P1: a: ratio 4.10, more than 2 x the committed 2.00"
    ]
    gone = results.worse([Row("P2", "b", why="failed")], committed)
    assert gone == ["P2: b: no figure any more (failed); the committed ratio is 1.00"]
    assert results.worse([Row("P1", "a", 4.1, 1.0)], {}) == []


def test_the_table_has_a_line_for_each_row_and_figures_with_units() -> None:
    lines = results.table([Row("P1", "a", 1.5, 0.01, {"requests": 0.5}, target=3)]).splitlines()
    assert len(lines) == 3
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == ["P1: a", "10 ms", "requests 500 ms", "1.50 s", "150.00", "3", "missed"]


def test_the_page_says_what_was_measured_where() -> None:
    facts = results.about([0.5, 0.5, 0.5], 10.0, ["P3: there is none"])
    text = results.page([Row("P1", "a", 1.5, 0.5)], facts)
    assert "left out: P3: there is none" in text
    assert f"aiohttp {facts['packages']['aiohttp']}" in text
    assert results.as_json([Row("P1", "a", 1.5, 0.5)], facts)["rows"][0]["ratio"] == 3.0


def test_a_part_that_is_not_there_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "COMMAND_COST", "no_such_benchmark")
    rows, skipped = bench.measure(["P3"], 1)
    assert rows == []
    assert skipped == ["P3: there is no benchmarks/no_such_benchmark.py"]


async def test_the_page_of_calls_tells_each_request_by_command_step_and_asker() -> None:
    lines = await calls_page.watched("from disk")
    told = {(each.command, each.step, each.request): each for each in lines}
    assert told["pause", "send", "POST /pause_generation"].part_of == "send(pause_generation)"
    assert told["release", "ask", "POST /flush_cache"].asked_for_by == "still_idle"
    assert told["drain", "prove", "POST /flush_cache"].asked_for_by == "idle"
    assert told["resume", "prove", "POST /generate"].part_of == "answers()"
    assert told["resume", "prove", "POST /generate"].asked_for_by == "answers"
    assert all(each.command for each in lines if each.step in ("ask", "send", "prove"))
    sent = [each.request for each in lines if each.step == "send"]
    assert sent.count("POST /release_memory_occupation") == 2
