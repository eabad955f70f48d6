"""What an SGLang server counts of its requests: calls by its HTTP counters, prompts by bounds, or nothing."""

from __future__ import annotations

import pytest
from lifecycle.adapters.http import Answer
from lifecycle.adapters.sglang.counts import request_counts

from lifecycle.core.requests import RequestCounts

MODEL = 'engine_type="unified",model_name="/m"'
CALL = 'endpoint="/generate",method="POST"'
METRICS = f"""
sglang:startup_time_seconds{{{MODEL},phase="load_weight"}} 1.25
sglang:startup_time_seconds{{{MODEL},phase="tokenizer_e2e"}} 12.5
sglang:http_requests_total{{{CALL}}} 20.0
sglang:http_requests_total{{endpoint="/v1/chat/completions",method="POST"}} 2.0
sglang:http_requests_total{{endpoint="/server_info",method="GET"}} 99.0
sglang:http_requests_active{{{CALL}}} 4.0
sglang:http_requests_active{{endpoint="/metrics",method="GET"}} 1.0
sglang:http_responses_total{{{CALL},status_code="200"}} 12.0
sglang:http_responses_total{{{CALL},status_code="503"}} 3.0
sglang:http_responses_total{{{CALL},status_code="400"}} 1.0
sglang:http_responses_total{{endpoint="/ready",method="GET",status_code="503"}} 50.0
sglang:num_requests_total{{{MODEL},is_streaming="false"}} 8.0
sglang:num_requests_total{{{MODEL},is_streaming="false",priority="1"}} 2.0
sglang:num_aborted_requests_total{{{MODEL}}} 77.0
sglang:request_time_per_output_token_seconds_count{{{MODEL},is_streaming="false"}} 7.0
sglang:request_time_per_output_token_seconds_bucket{{{MODEL},le="1.0"}} 7.0
sglang:time_to_first_token_seconds_count{{{MODEL},is_streaming="false"}} 9.0
"""
BOOT = "load_weight 1.25, tokenizer_e2e 12.5"


def counted(text: str = METRICS, status: int = 200, *, settled: bool = False) -> RequestCounts | None:
    return request_counts(Answer(status, text.encode()), settled=settled)


def without(*names: str) -> str:
    return "\n".join(line for line in METRICS.splitlines() if not any(f":{name}{{" in line for name in names))


def test_calls_are_counted_by_http_and_prompts_by_bounds() -> None:
    """22 calls: 4 are open, 3 were refused, one was wrong, and 14 have ended. Commands to abort are no requests."""
    assert counted() == RequestCounts("engine", BOOT, 14, 7, (3, 9), refused=3, open=4)


def test_before_the_first_call_nothing_has_a_counter() -> None:
    assert counted("\n".join(METRICS.splitlines()[:3])) == RequestCounts(
        "engine", BOOT, 0, 0, (0, 0), refused=0, open=0
    )


_TIMED = f"request_time_per_output_token_seconds_count{{{MODEL},is_streaming="
#: More prompts with time than prompts.
TOO_MANY_TIMED = METRICS.replace(f'{_TIMED}"false"}} 7.0', f'{_TIMED}"false"}} 70.0')


@pytest.mark.parametrize(
    ("text", "known"),
    [
        (without("http_requests_active"), (None, 7, None, None)),
        (without("http_responses_total"), (None, 7, None, 4)),
        (without("num_requests_total"), (14, None, 3, 4)),
        (without("request_time_per_output_token_seconds_count"), (14, 0, 3, 4)),
        (METRICS.replace("_active{" + CALL + "} 4.0", "_active{" + CALL + "} 40.0"), (None, 7, 3, 40)),
        (TOO_MANY_TIMED, (14, None, 3, 4)),
    ],
)
def test_what_is_missing_or_odd_is_unknown(text: str, known: tuple[int | None, ...]) -> None:
    made = counted(text)
    assert made is not None
    assert (made.ended, made.finished, made.refused, made.open) == known


@pytest.mark.parametrize("counter", ["num_requests_total", "time_to_first_token_seconds_count"])
def test_of_streams_it_is_not_known_which_are_open_before_they_have_settled(counter: str) -> None:
    """Each counts as an active call for two seconds after its end."""
    text = f'{METRICS}sglang:{counter}{{{MODEL},is_streaming="true"}} 1.0\n'
    for settled, open_now in ((False, None), (True, 4)):
        made = counted(text, settled=settled)
        assert made is not None
        assert (made.ended, made.finished, made.refused, made.open) == (None, 7, 3, open_now)


def test_a_server_without_a_count_of_first_tokens_has_one_bound() -> None:
    made = counted(without("time_to_first_token_seconds_count"))
    assert made is not None
    assert made.doubtful == (3,)


def test_what_has_no_boot_tells_nothing() -> None:
    assert counted(without("startup_time_seconds")) is None
    assert counted(status=404) is None
    assert counted("<html>") is None
