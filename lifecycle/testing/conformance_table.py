"""The former place of `lifecycle.testing.conformance.table`, kept for one release."""

from .conformance.table import Table

__all__ = ["Table"]
