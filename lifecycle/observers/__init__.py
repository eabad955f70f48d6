"""Observers: structured logs, counters, and a hook that suspends health checks while an engine sleeps."""

from .health_checks import HealthCheckPause, LookAway
from .logs import EventLog
from .metrics import RequestMetrics

__all__ = ["EventLog", "HealthCheckPause", "LookAway", "RequestMetrics"]
