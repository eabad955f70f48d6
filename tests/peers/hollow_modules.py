"""Importing a heavy requirement of a peer works and gives nothing: a class is empty, a function returns None.

What the peer's own functions call of a requirement while they run is replaced by a few lines (`*_stand_ins.py`).
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


class _Hollow(type):
    """A class with nothing in it, whose attributes are hollow too."""

    def __getattr__(cls, name: str) -> Any:
        return _hollow(name)

    def __getitem__(cls, item: Any) -> Any:
        return cls

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__


def _hollow(name: str) -> Any:
    """A class for a name that begins with a capital, a function that returns None for any other."""
    if name.startswith("__"):
        raise AttributeError(name)
    return _Hollow(name, (), {}) if name[:1].isupper() or name.startswith("_") else lambda *args, **kwargs: None


class HollowModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """These packages and their submodules are importable, have nothing in them but `filled`, and are asked for last."""

    def __init__(self, names: Sequence[str], filled: dict[str, dict[str, Any]]) -> None:
        self._names = frozenset(names)
        self._filled = filled
        #: The modules that were imported.
        self.imported: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of a hollow package, or None for every other name."""
        if fullname.partition(".")[0] not in self._names:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        """The module has what it is filled with, and answers every other name with something hollow."""
        module.__dict__.update({"__version__": "0", "__getattr__": _hollow, **self._filled.get(module.__name__, {})})
        self.imported.append(module.__name__)


def installed(names: Sequence[str], filled: dict[str, dict[str, Any]]) -> HollowModules:
    """These packages are hollow from now on. Raises RuntimeError where one of them is there already."""
    there = sorted(set(names) & sys.modules.keys())
    if there:
        raise RuntimeError(f"{', '.join(there)} was imported before it was made hollow")
    finder = HollowModules(names, filled)
    sys.meta_path.insert(0, finder)
    return finder
