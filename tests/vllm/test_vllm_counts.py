"""What a vLLM server counts of its requests: which samples are taken for what, and what is unknown."""

from __future__ import annotations

import pytest
from lifecycle.adapters.http import Answer
from lifecycle.adapters.vllm.counts import request_counts

from lifecycle.core.requests import RequestCounts

LABELS = 'engine="0",model_name="/m"'
METRICS = f"""
# HELP vllm:request_success_total Count of successfully processed requests.
# TYPE vllm:request_success_total counter
vllm:request_success_total{{{LABELS},finished_reason="stop"}} 3.0
vllm:request_success_total{{{LABELS},finished_reason="length"}} 4.0
vllm:request_success_total{{{LABELS},finished_reason="abort"}} 5.0
vllm:request_success_total{{{LABELS},finished_reason="error"}} 1.0
vllm:request_success_total{{{LABELS},finished_reason="repetition"}} 0.0
vllm:request_success_total{{engine="1",model_name="/m",finished_reason="length"}} 2.0
vllm:request_success_created{{{LABELS},finished_reason="stop"}} 1.79e+09
vllm:num_requests_running{{{LABELS}}} 8.0
vllm:admission_rejections_total{{model_name="/m",reason="max_num_queued_reqs"}} 6.0
vllm:admission_rejections_total{{model_name="/m",reason="max_num_queued_tokens"}} 1.0
process_start_time_seconds 1.79603e+09
"""


def counted(text: str = METRICS, load: int | None = None, *, status: int = 200, refuses: bool = False) -> object:
    return request_counts(Answer(status, text.encode()), load, refuses_new=refuses)


def test_every_engine_and_every_reason_counts() -> None:
    assert counted(load=11) == RequestCounts(
        "engine", "1796030000.0", ended=15, finished=9, aborted=5, refused=7, open=11
    )


def test_what_refuses_while_it_is_paused_does_so_before_anything_is_counted() -> None:
    made = counted(refuses=True)
    assert isinstance(made, RequestCounts)
    assert (made.refused, made.open) == (None, None)


@pytest.mark.parametrize(
    ("change", "to"),
    [
        ("process_start_time_seconds", "process_start_times"),  # several front ends: none has a time of its own
        ("vllm:request_success_total", "vllm:request_successes"),
        ('finished_reason="abort"} 5.0', 'finished_reason="abort"} many'),
        ('finished_reason="abort"} 5.0', 'finished_reason="abort" 5.0'),
    ],
)
def test_an_odd_answer_tells_nothing(change: str, to: str) -> None:
    assert counted(METRICS.replace(change, to)) is None


def test_no_answer_tells_nothing() -> None:
    assert counted(status=404) is None
    assert counted("<html>") is None
    assert request_counts(Answer(None, error="no answer"), 3, refuses_new=False) is None


@pytest.mark.parametrize("value", ["-3.0", "0.5", "NaN", "+Inf"])
def test_a_value_that_counts_nothing_is_unknown(value: str) -> None:
    made = counted(METRICS.replace('reason="max_num_queued_reqs"} 6.0', f'reason="max_num_queued_reqs"}} {value}'))
    assert isinstance(made, RequestCounts)
    assert made.refused is None
    assert made.ended == 15


def test_a_version_without_a_limit_does_not_tell_what_it_refused() -> None:
    made = counted("\n".join(line for line in METRICS.splitlines() if "rejections" not in line))
    assert isinstance(made, RequestCounts)
    assert made.refused is None
