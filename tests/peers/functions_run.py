"""Which functions of a peer's package ran, and how many of their lines."""

from __future__ import annotations

import dis
import inspect
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any


@dataclass(frozen=True, slots=True)
class Function:
    """A function that ran, with the number of its lines that have code, and of those that ran."""

    module: str
    name: str
    lines: int
    ran: int


class FunctionsRun:
    """Records functions and lines of the modules below `folder` that run in any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = f"{folder}/"
        self._lines: dict[CodeType, set[int]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, what runs is recorded."""
        threading.settrace(self.called)
        sys.settrace(self.called)
        try:
            yield
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]

    def found(self) -> list[Function]:
        """The functions that ran, by module and name; no body of a module or class, nor what has no name."""
        named = [each for each in self._lines if each.co_flags & inspect.CO_OPTIMIZED and "<" not in each.co_name]
        return sorted(map(self._function, named), key=lambda each: (each.module, each.name))

    def _function(self, code: CodeType) -> Function:
        module = code.co_filename.removeprefix(self._folder)
        lines = _lines(code)
        return Function(module, code.co_qualname.replace(".<locals>", ""), len(lines), len(self._lines[code] & lines))

    def called(self, frame: FrameType, event: str, argument: Any) -> Any:
        """What `sys.settrace` takes."""
        if not frame.f_code.co_filename.startswith(self._folder):
            return None
        lines = self._lines.setdefault(frame.f_code, set())

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "line":
                lines.add(frame.f_lineno)
            return line

        return line


def _lines(code: CodeType) -> set[int]:
    return {number for _, number in dis.findlinestarts(code) if number != code.co_firstlineno}


def merged(found: Iterable[Function]) -> list[Function]:
    """Of each function that ran in several processes, the one that ran most."""
    most: dict[tuple[str, str], Function] = {}
    for each in sorted(found, key=lambda each: each.ran):
        most[each.module, each.name] = each
    return sorted(most.values(), key=lambda each: (each.module, each.name))
