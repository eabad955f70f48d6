"""One engine: its verbs, the six steps of a command, and finding out where it is."""

from .engine import Engine

__all__ = ["Engine"]
