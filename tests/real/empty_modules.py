"""Importing torchvision, torchaudio or sgl_kernel works and gives nothing, because none of the three has a CPU build.

`build_env.py` copies this file into the environment of the real SGLang, where a `.pth` file calls `install()` at every
start of its interpreter. Modules of models that are never served import names of these three at their top; such a name
is an empty class here. Nothing else is replaced: any other missing module still raises ImportError.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

EMPTY = frozenset({"torchvision", "torchaudio", "sgl_kernel"})


class _Nothing(type):
    """A class with nothing in it, whose attributes are classes with nothing in them."""

    def __getattr__(cls, name: str) -> _Nothing:
        return _nothing(name)


def _nothing(name: str) -> _Nothing:
    """An empty class for a name that only has to be there; a special name is not there."""
    if name.startswith("__"):
        raise AttributeError(name)
    return _Nothing(name, (), {})


class EmptyModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The packages in `EMPTY` and their submodules are importable and have nothing in them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of an empty package, or None for every name outside of `EMPTY`."""
        if fullname.partition(".")[0] not in EMPTY:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        """The module answers every name with an empty class, and is older than any version asked for."""
        module.__version__ = "0"  # type: ignore[attr-defined]
        module.__getattr__ = _nothing  # type: ignore[method-assign]


def install() -> None:
    """The finder is the last one asked, once, so that a module that is really installed wins."""
    if not any(isinstance(finder, EmptyModules) for finder in sys.meta_path):
        sys.meta_path.append(EmptyModules())
