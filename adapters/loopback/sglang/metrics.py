"""The Prometheus metrics, under the names that SGLang gives them, and what its front end counts for them.

Source: sglang 0.5.23, observability/metrics_collector.py and http_request_metrics.py, managers/tokenizer_manager.py
(collect_metrics, _handle_abort_req, abort_request), measured. A counter appears with the first thing that it counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..sequence import HEALTH_PREFIX, Output

if TYPE_CHECKING:
    from .engine import SGLangEngine


@dataclass(slots=True)
class PromptCounts:
    """Prompts, as the front end counts them. Of a check of health nothing counts.

    - `first`: those that had a first token.
    - `through`: those that ended in the scheduler's batch: finished, or aborted while they ran.
    - `timed`: those of them that finished, and had some time between their first token and their end.
    - `abort_commands`: what `num_aborted_requests_total` counts: commands, and no requests.
    """

    first: int = 0
    through: int = 0
    timed: int = 0
    abort_commands: int = 0
    _had_first: set[str] = field(default_factory=set)

    def delivered(self, outputs: Iterable[Output]) -> None:
        """These outputs have come from the scheduler."""
        for output in outputs:
            if not output.rid.startswith(HEALTH_PREFIX):
                self._count(output)

    def _count(self, output: Output) -> None:
        finish = output.finish
        aborted = finish is not None and finish["type"] == "abort"
        if aborted and "status_code" not in (finish or {}):  # in the waiting queue
            self._had_first.discard(output.rid)
            return
        timed = output.rid in self._had_first
        if not timed and not aborted:
            self.first += 1
            self._had_first.add(output.rid)
        if finish is not None:
            self.through += 1
            self.timed += timed and not aborted and len(output.ids) > 1
            self._had_first.discard(output.rid)


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
    for name, count in (
        ("num_requests_total", counts.through),
        ("num_aborted_requests_total", counts.abort_commands),
        ("request_time_per_output_token_seconds_count", counts.timed),
        ("time_to_first_token_seconds_count", counts.first),
    ):
        yield name, "counter", [(_OWN, float(count))] if count else []


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
