"""Settings in one schema, read once."""

from .fleet_file import FleetFile, read
from .schema import Loaded, Settings, load

__all__ = ["FleetFile", "Loaded", "Settings", "load", "read"]
