"""Counters of what became of requests, for Prometheus. Needs the extra `metrics`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import ConfigurationError
from ..core.observer import BaseObserver
from ..core.requests import FATES
from ..core.states import State
from ..core.transition import Transition

#: The labels of every counter. Documented in docs/observers.md.
LABELS = ("engine", "group", "fate")


class RequestMetrics(BaseObserver):
    """Counts requests by their fate, and the pauses of which a fate is not known, once an engine serves again.

    `engines` are groups by the names of engines whose counters are 0 from the start. `registry` is one of
    prometheus-client; without one, its default.
    """

    def __init__(self, engines: Mapping[str, str] | None = None, *, registry: Any = None) -> None:
        try:
            from prometheus_client import REGISTRY, Counter
        except ImportError as missing:
            raise ConfigurationError(
                'metrics need prometheus-client; pip install "engine-lifecycle[metrics]"'
            ) from missing
        registry = REGISTRY if registry is None else registry
        what = "Requests of paused engines, by what became of them"
        self._requests = Counter("lifecycle_requests", what, LABELS, registry=registry)
        what = "Pauses of engines of which that fate of requests is not known"
        self._unknown = Counter("lifecycle_moves_with_unknown_requests", what, LABELS, registry=registry)
        for engine, group in (engines or {}).items():
            self._begin(engine, group)

    def transition(self, record: Transition) -> None:
        """An engine that was paused has zeros; one that serves again, or has ended, is counted."""
        if record.dest is State.PAUSING:
            self._begin(record.engine, record.group)
        fates = record.requests
        if fates is None or record.dest not in (State.SERVING, State.GONE):
            return
        for fate in FATES:
            count = getattr(fates, fate)
            counter = self._unknown if count is None else self._requests
            counter.labels(record.engine, record.group, fate).inc(1 if count is None else count)

    def _begin(self, engine: str, group: str) -> None:
        for fate in FATES:
            self._requests.labels(engine, group, fate)
            self._unknown.labels(engine, group, fate)
