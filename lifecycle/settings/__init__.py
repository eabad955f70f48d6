"""Settings: one schema, read once."""

from .schema import Loaded, load
from .values import Settings

__all__ = ["Loaded", "Settings", "load"]
