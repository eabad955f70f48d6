"""Several engines: moves, windows, routers, membership."""

from .fleet import Fleet

__all__ = ["Fleet"]
