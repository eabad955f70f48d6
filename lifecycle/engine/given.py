"""What callers give under a deprecated name."""

from __future__ import annotations

import warnings

from ..core.ports import StateStore


def store_given(store: StateStore | None, memory: StateStore | None) -> StateStore | None:
    """The store that was given, under its name or its deprecated one."""
    if memory is None:
        return store
    warnings.warn("memory= is now store=", DeprecationWarning, stacklevel=3)
    return store or memory
