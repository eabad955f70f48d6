"""What is known of engines, kept across processes. `Memory` and `Overtaken` are deprecated names."""

from __future__ import annotations

import warnings
from typing import Any

from ..core.ports import StateStore
from .sqlite import Store, WriteConflict, default_path
from .tenants import Tenants

__all__ = ["StateStore", "Store", "Tenants", "WriteConflict", "default_path"]

_RENAMED: dict[str, Any] = {"Memory": StateStore, "Overtaken": WriteConflict}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        kind = _RENAMED[name]
        warnings.warn(f"lifecycle.store.{name} is now {kind.__name__}", DeprecationWarning, stacklevel=2)
        return kind
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
