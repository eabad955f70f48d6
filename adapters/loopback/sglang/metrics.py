"""The Prometheus metrics, under the names that SGLang gives them. A counter appears with the first thing it counts.

Source: sglang 0.5.23, observability/metrics_collector.py and http_request_metrics.py, measured.
"""

from __future__ import annotations

from collections.abc import Iterator

from .engine import SGLangEngine


def exposition(engine: SGLangEngine) -> str:
    """All metrics as text."""
    lines = []
    for name, kind, samples in (*_scheduler(engine), *_front_end(engine), *_http(engine)):
        if samples:
            lines.append(f"# TYPE sglang:{name} {kind}")
            lines += [f"sglang:{name}{{{labels}}} {value}" for labels, value in samples]
    return "\n".join(lines) + "\n"


_Family = tuple[str, str, list[tuple[str, float]]]
_OWN = 'model_name="loopback"'


def _scheduler(engine: SGLangEngine) -> Iterator[_Family]:
    counts = engine.scheduler.publisher.counts
    yield "num_running_reqs", "gauge", [(_OWN, counts.running)]
    yield "num_queue_reqs", "gauge", [(_OWN, counts.waiting)]
    yield "num_used_tokens", "gauge", [(_OWN, counts.used_tokens)]
    yield "gen_throughput", "gauge", [(_OWN, counts.throughput)]
    phases = [(f'{_OWN},phase="{phase}"', taken_s) for phase, taken_s in engine.startup_time.items()]
    yield "startup_time_seconds", "gauge", phases


def _front_end(engine: SGLangEngine) -> Iterator[_Family]:
    counts = engine.gate.counts
    for name, by_stream in (
        ("num_requests_total", counts.through),
        ("request_time_per_output_token_seconds_count", counts.timed),
        ("time_to_first_token_seconds_count", counts.first),
    ):
        samples = [(f'{_OWN},is_streaming="{str(stream).lower()}"', float(n)) for stream, n in by_stream.items() if n]
        yield name, "counter", samples
    commands = float(counts.abort_commands)
    yield "num_aborted_requests_total", "counter", [(_OWN, commands)] if commands else []


def _http(engine: SGLangEngine) -> Iterator[_Family]:
    http = engine.http
    begun = [(_endpoint(*call), float(count)) for call, count in http.begun.items()]
    yield "http_requests_total", "counter", begun
    yield "http_requests_active", "gauge", [(_endpoint(*call), count) for call, count in http.active.items()]
    answers = [
        (f'{_endpoint(path, method)},status_code="{status}"', float(count))
        for (path, method, status), count in http.answers.items()
    ]
    yield "http_responses_total", "counter", answers


def _endpoint(path: str, method: str) -> str:
    return f'endpoint="{path}",method="{method}"'
