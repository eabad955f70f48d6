"""Samples of a page of metrics are those that prometheus-client reads in it, and a page of anything else has none."""

from __future__ import annotations

import pytest
from lifecycle.adapters.exposition import Sample, samples
from prometheus_client.parser import text_string_to_metric_families

PAGE = r"""# HELP vllm:request_success_total Count, of "requests" {that} ended.
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="/models/a b"} 3.0
vllm:request_success_total{engine="0",finished_reason="abort",model_name="a, b=\"c\" {d}"} 1e+03
vllm:request_success_total{ engine = "1" , finished_reason = "length" , } 7 1700000000000
vllm:request_success_total{engine="2",finished_reason="a\\b\nc"} 0
# TYPE bare gauge
bare 12.5
bare_too{} -1
bare_total_of_another 4
# a comment
"""

NAMES = frozenset({"vllm:request_success_total", "bare", "bare_too"})


def read_by_client(page: str) -> dict[str, list[Sample]]:
    """The same samples, as prometheus-client reads them."""
    found: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(page):
        for each in family.samples:
            if each.name in NAMES:
                found.setdefault(each.name, []).append(Sample(each.labels, each.value))
    return found


def test_samples_are_what_prometheus_client_reads() -> None:
    assert samples(PAGE.encode(), NAMES) == read_by_client(PAGE)
    assert len(samples(PAGE.encode(), NAMES)["vllm:request_success_total"]) == 4


@pytest.mark.parametrize("line", ["bare x", "bare NaN", "bare +Inf", "bare 1 2 3", 'bare{a="b" 1', "bare"])
def test_a_metric_with_an_odd_line_is_left_out(line: str) -> None:
    assert set(samples(f"{PAGE}{line}\n".encode(), NAMES)) == NAMES - {"bare"}


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe", b"{}"])
def test_a_page_of_anything_else_has_none(body: bytes) -> None:
    assert samples(body, NAMES) == {}
