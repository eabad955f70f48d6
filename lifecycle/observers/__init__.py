"""Observers: what is told of engines to logs, and to whatever must look away while an engine sleeps."""

from .logs import EventLog
from .monitors import LookAway

__all__ = ["EventLog", "LookAway"]
