"""Observers: structured logs, and a hook that suspends health checks while an engine sleeps."""

from .health_checks import HealthCheckPause, LookAway
from .logs import EventLog

__all__ = ["EventLog", "HealthCheckPause", "LookAway"]
