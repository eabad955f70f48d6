"""The Prometheus metrics, under the names that vLLM gives them. Source: vllm 0.32.0, v1/metrics/loggers.py."""

from __future__ import annotations

from collections.abc import Iterator

from .engine import VllmEngine

_FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
_SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")


def exposition(engine: VllmEngine) -> str:
    """All metrics as text."""
    metrics = [*_scheduler(engine), *_front_end(engine), *_sleep(engine)]
    metrics.append(("process_start_time_seconds", "gauge", [("", engine.started_at)]))
    lines = []
    for name, kind, samples in metrics:
        lines.append(f"# TYPE {name} {kind}")
        lines += [f"{name}{labels} {value}" for labels, value in samples]
    return "\n".join(lines) + "\n"


_Family = tuple[str, str, list[tuple[str, float]]]


def _scheduler(engine: VllmEngine) -> Iterator[_Family]:
    def family(name: str, kind: str, values: list[float], **more: str) -> _Family:
        return name, kind, [(_labels(engine, core, **more), value) for core, value in enumerate(values)]

    gauges = [core.gauges for core in engine.cores]
    waiting: list[float] = [each.waiting for each in gauges]
    yield family("vllm:num_requests_running", "gauge", [each.running for each in gauges])
    yield family("vllm:num_requests_waiting", "gauge", waiting)
    capacity = family("", "", waiting, reason="capacity")[2]
    deferred = family("", "", [0] * len(gauges), reason="deferred")[2]
    yield "vllm:num_requests_waiting_by_reason", "gauge", capacity + deferred
    yield family("vllm:kv_cache_usage_perc", "gauge", [each.kv_usage for each in gauges])
    yield family("vllm:num_preemptions_total", "counter", [each.preemptions for each in gauges])
    yield family("vllm:generation_tokens_total", "counter", [each.generated for each in gauges])
    yield family("vllm:prompt_tokens_total", "counter", [each.prefilled + each.cache_hits for each in gauges])
    yield family("vllm:prefix_cache_queries_total", "counter", [each.cache_queries for each in gauges])
    yield family("vllm:prefix_cache_hits_total", "counter", [each.cache_hits for each in gauges])


def _front_end(engine: VllmEngine) -> Iterator[_Family]:
    finished = engine.requests.finished
    counts = [(_labels(engine, 0, finished_reason=each), float(finished[each])) for each in _FINISH_REASONS]
    yield "vllm:request_success_total", "counter", counts
    rejections = [(_labels(engine, 0, reason="max_num_queued_reqs"), float(engine.requests.rejections))]
    if engine.traits.caps_queue:
        yield "vllm:admission_rejections_total", "counter", rejections


def _sleep(engine: VllmEngine) -> Iterator[_Family]:
    """What was asked last, and not what is: /resume while asleep leaves it, and so does a pause."""
    asleep, level = engine.sleep_state
    values = (1 - asleep, int(level == 1), int(level == 2))
    samples = [
        (_labels(engine, core, sleep_state=state), float(value))
        for core in range(len(engine.cores))
        for state, value in zip(_SLEEP_STATES, values, strict=True)
    ]
    yield "vllm:engine_sleep_state", "gauge", samples


def _labels(engine: VllmEngine, core: int, **more: str) -> str:
    labels = {"engine": str(core), "model_name": engine.model_path, **more}
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"
