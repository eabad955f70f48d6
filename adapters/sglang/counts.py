"""What an SGLang server counts of its requests, from its `/metrics`, which it has with --enable-metrics.

No counter of SGLang tells finished requests from aborted ones. Source: sglang 0.5.23, managers/tokenizer_manager.py
(collect_metrics, _handle_abort_req, abort_request, create_abort_task), observability/metrics_collector.py and
http_request_metrics.py, measured:

- `http_requests_total` less `http_requests_active` are the calls that have ended. Those with an error as their answer
  were never admitted: a 503 is a refusal. A call with several prompts is one request. A *stream* counts as active for
  two seconds after its end: where there were any streams, it is not known which calls are open, nor which have ended,
  unless the server has been idle for longer.
- `request_time_per_output_token_seconds_count` are prompts that finished by themselves, and had some time between
  their first token and their end. `num_requests_total` counts those, and prompts that were aborted while they ran; not
  those that were aborted while they waited. `time_to_first_token_seconds_count` grows with every prompt's first token.
  A prompt that finished without any time is in both of the last two: where one of them did not grow by more than the
  first, none did.
- `num_aborted_requests_total` counts commands to abort, one of which may be about all requests. It is not used.
- Counts of the scheduler stand still while it is paused, and are not used.

`startup_time_seconds` says how long the phases of the start took, which no second process shares.
"""

from __future__ import annotations

from lifecycle.core.requests import RequestCounts

from ..exposition import Sample, samples, total
from ..http import Answer

#: The endpoints whose calls are requests. Source: sglang 0.5.23, entrypoints/http_server.py.
GENERATE = ("/generate", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")

REFUSED = "503"

#: Seconds for which a stream counts as active after its end: two, and some for the event loop of a busy server.
SETTLED_S = 3.0

_CALLS, _ANSWERS, _ACTIVE = (
    "sglang:http_requests_total",
    "sglang:http_responses_total",
    "sglang:http_requests_active",
)
_TIMED, _THROUGH, _FIRST, _STARTED = (
    "sglang:request_time_per_output_token_seconds_count",
    "sglang:num_requests_total",
    "sglang:time_to_first_token_seconds_count",
    "sglang:startup_time_seconds",
)
_NAMES = frozenset({_CALLS, _ANSWERS, _ACTIVE, _TIMED, _THROUGH, _FIRST, _STARTED})


def request_counts(metrics: Answer, *, settled: bool) -> RequestCounts | None:
    """The counts in an answer of `/metrics`; None where it is none of such a server.

    `settled`: no stream has ended within `SETTLED_S`. A counter appears with the first thing that it counts.
    """
    found = samples(metrics.body, _NAMES) if metrics.ok else {}
    if _STARTED not in found:
        return None
    calls = _of_calls(found, _CALLS)
    active = _of_calls(found, _ACTIVE) if _ACTIVE in found or not calls else None
    ended, refused = None, None
    if calls is not None and active is not None and (_ANSWERS in found or calls == active):
        answers = [each for each in found.get(_ANSWERS, []) if each.labels.get("endpoint") in GENERATE]
        refused = total([each for each in answers if each.labels.get("status_code") == REFUSED])
        errors = total([each for each in answers if not each.labels.get("status_code", "").startswith("2")])
        ended = None if errors is None or calls < active + errors else calls - active - errors
    finished, doubtful = _finished(found, ended)
    if any(total(found.get(name, []), is_streaming=("true",)) != 0 for name in (_THROUGH, _FIRST)):
        ended, active = None, active if settled else None
    boot = ", ".join(sorted(f"{each.labels.get('phase')} {each.value!r}" for each in found[_STARTED]))
    return RequestCounts("engine", boot, ended, finished, doubtful, refused=refused, open=active)


def _of_calls(found: dict[str, list[Sample]], name: str) -> int | None:
    return total(found.get(name, []), endpoint=GENERATE, method=("POST",))


def _finished(found: dict[str, list[Sample]], ended: int | None) -> tuple[int | None, tuple[int, ...]]:
    """Prompts that finished for certain, and the counts of which each bounds those that it missed."""
    if _THROUGH not in found and ended != 0:
        return None, ()
    timed, through = total(found.get(_TIMED, [])), total(found.get(_THROUGH, []))
    if timed is None or through is None or timed > through:
        return None, ()
    first = total(found.get(_FIRST, [])) if _FIRST in found or not timed else None
    return timed, (through - timed,) if first is None else (through - timed, first)
