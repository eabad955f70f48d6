"""Load counts, which the scheduler publishes after each pass of its loop."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ..batch import Batch


@dataclass(frozen=True, slots=True)
class LoadSnapshot:
    """The counts at one time; `timestamp` is wall-clock time in seconds."""

    timestamp: float = 0.0
    running: int = 0
    waiting: int = 0
    used_tokens: int = 0
    waiting_tokens: int = 0
    throughput: float = 0.0
    prefilled: int = 0
    moments: tuple[float, ...] = ()


@dataclass(slots=True)
class Publisher:
    """Takes snapshots of the load. The HTTP thread reads `latest` without a message to the scheduler."""

    latest: LoadSnapshot = field(default_factory=LoadSnapshot)
    counts: LoadSnapshot = field(default_factory=LoadSnapshot)  # for /metrics, published once more at a retract
    _marks: deque[tuple[float, int]] = field(default_factory=deque)
    #: Sums over the steps: 1, rows, microseconds, rows squared, rows times microseconds, tokens.
    _moments: tuple[float, ...] = ()

    def stepped(self, rows: int, step_s: float) -> None:
        """Adds one step of this many rows and seconds to the sums."""
        step_us = step_s * 1e6
        each = (1.0, rows, step_us, rows * rows, rows * step_us, rows)
        self._moments = tuple(map(sum, zip(self._moments or (0.0,) * len(each), each, strict=True)))

    def publish(self, batch: Batch, page_tokens: int) -> None:
        """Renews both snapshots."""
        self.latest = self.counts = self._snapshot(batch, page_tokens)

    def publish_counts(self, batch: Batch, page_tokens: int) -> None:
        """Renews the counts of /metrics; those of /v1/loads stay as they are.

        Source: sglang 0.5.23, measured: after a retract the gauges change once and the loads do not.
        """
        self.counts = self._snapshot(batch, page_tokens)

    def _snapshot(self, batch: Batch, page_tokens: int) -> LoadSnapshot:
        return LoadSnapshot(
            timestamp=time.time(),
            running=len(batch.running),
            waiting=len(batch.waiting),
            used_tokens=batch.pool.used * page_tokens,
            waiting_tokens=sum(len(each.tokens) for each in batch.waiting),
            throughput=self._throughput(batch.generated),
            prefilled=batch.prefilled,
            moments=self._moments,
        )

    def _throughput(self, generated: int) -> float:
        now = time.monotonic()
        self._marks.append((now, generated))
        while now - self._marks[0][0] > 1.0:
            self._marks.popleft()
        began, before = self._marks[0]
        return (generated - before) / (now - began) if now > began else 0.0


def as_load(snapshot: LoadSnapshot, capacity: int, max_running: int) -> dict[str, Any]:
    """The core section of a rank in /v1/loads."""
    return {
        "timestamp": snapshot.timestamp,
        "dp_rank": 0,
        "num_running_reqs": snapshot.running,
        "num_waiting_reqs": snapshot.waiting,
        "num_waiting_uncached_tokens": snapshot.waiting_tokens,
        "num_used_tokens": snapshot.used_tokens,
        "num_total_tokens": snapshot.used_tokens + snapshot.waiting_tokens,
        "num_active_tokens": snapshot.used_tokens,
        "num_prealloc_ready_tokens": 0,
        "max_total_num_tokens": capacity,
        "token_usage": round(snapshot.used_tokens / capacity, 4),
        "gen_throughput": round(snapshot.throughput, 2),
        "cache_hit_rate": 0.0,
        "utilization": round(snapshot.running / max_running, 4),
        "max_running_requests": max_running,
        "total_prefill_uncached_tokens": snapshot.prefilled,
        "total_prefill_busy_us": round(snapshot.moments[2]) if snapshot.moments else 0,
        "decode_moments": list(snapshot.moments) or None,
    }


def disaggregation(mode: str) -> dict[str, Any]:
    """The disaggregation section of a rank. All counts are 0, since this engine transfers nothing."""
    queues = ("prefill_bootstrap", "prefill_inflight", "decode_prealloc", "decode_transfer", "decode_retracted")
    counts = {f"{queue}_queue_reqs": 0 for queue in queues}
    return {"mode": mode, **counts, "kv_transfer_speed_gb_s": 0.0, "kv_transfer_latency_ms": 0.0}
