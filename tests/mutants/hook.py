"""Breaks the library in a process: a pytest plugin (`-p hook`), or `install(name)` before anything of it is imported.

The mutant is named by LIFECYCLE_MUTANT. A call in the source is replaced when its module is imported; a row of the
table is once the table was.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path

#: By which the mutant of a process is named.
NAMED_BY = "LIFECYCLE_MUTANT"


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module from a syntax tree that was broken."""

    def __init__(self, fullname: str, path: str, tree: ast.Module) -> None:
        super().__init__(fullname, path)
        self._tree = tree

    def get_code(self, fullname: str) -> types.CodeType:
        """Never what was compiled before."""
        return compile(self._tree, self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module, broken."""

    def __init__(self, module: str, path: Path, tree: ast.Module) -> None:
        self._module = module
        self._path = path
        self._tree = tree

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The broken module; None for every other."""
        if fullname != self._module:
            return None
        loader = _Loader(fullname, str(self._path), self._tree)
        found = importlib.machinery.ModuleSpec(fullname, loader, origin=str(self._path))
        found.has_location = True
        return found


def install(name: str) -> None:
    """The library of this process is broken so."""
    import code_mutants as mutants  # it imports the table alone, and the places of the source are those of files

    mutant = mutants.named(name)
    if mutant.kind == "repeated":
        _repeat(mutant.what)
    elif mutant.module is None:
        _change_rows(mutants.changed_rows(mutant))
    else:
        path = mutants.ROOT / mutant.where.partition(":")[0]
        tree = mutants.broken(mutant, path.read_text())
        assert isinstance(tree, ast.Module)
        sys.meta_path.insert(0, _Finder(mutant.module, path, tree))
        for module in [each for each in sys.modules if each.startswith("lifecycle")]:
            del sys.modules[module]


def _change_rows(rows: tuple[object, ...]) -> None:
    from lifecycle.rules import machine, table

    for module in (table, machine):
        module.OPERATIONS = rows  # type: ignore[assignment]
    machine._MACHINE = machine._compile()


def _repeat(name: str) -> None:
    """Calls of this name are sent twice: the answer is that of the second."""
    from lifecycle.engine import call

    send = call.asyncio.ensure_future

    def twice(sending: object) -> object:
        frame = getattr(sending, "cr_frame", None)
        again = frame.f_locals.get("call") if frame is not None else None
        if getattr(again, "name", None) != name:
            return send(sending)  # type: ignore[arg-type]

        async def both() -> object:
            adapter, deadline_s = frame.f_locals["self"], frame.f_locals["deadline_s"]
            await sending  # type: ignore[misc]
            return await adapter.send(again, deadline_s=deadline_s)

        return send(both())

    call.asyncio = types.SimpleNamespace(**{**vars(call.asyncio), "ensure_future": twice})  # type: ignore[assignment]


if NAMED_BY in os.environ:
    install(os.environ[NAMED_BY])
