"""Traces Python calls inside `lifecycle/`, from caller file to callee file, and compares the storeys of both.

A call's caller is the nearest frame of `lifecycle/` above it, so that calls through the standard library
(`asyncio.gather`, context managers, `sorted`) count for the module that made them. A task has no such frame above it;
its caller is the module that created the task.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from weakref import WeakKeyDictionary

import lifecycle

ROOT = Path(lifecycle.__file__).parent
#: The storeys, from the lowest to the highest; packages of one storey stand side by side.
STOREYS = (
    ("core",),
    ("nodes", "rules"),
    ("store", "observers", "launch", "render"),
    ("engine",),
    ("fleet",),
    ("frameworks", "demo", "sync", "testing", "doctor", "settings"),
    ("server",),
    ("cli",),
)
#: Ports are implemented here: adapters, probes, routers, stores and observers may be called from below.
PORTS = frozenset({"testing", "adapters", "store", "observers"})


def package_of(file: str) -> str:
    """The package of a file of `lifecycle/`: `engine/attempt.py` is of engine, `sync.py` of sync."""
    return file.partition("/")[0].removesuffix(".py")


def storey_of(file: str) -> int:
    """The index in `STOREYS` of a file of `lifecycle/`; that of the package itself (`__init__.py`) is above all."""
    package = package_of(file)
    return next((index for index, packages in enumerate(STOREYS) if package in packages), len(STOREYS))


@dataclass(frozen=True, slots=True)
class Upward:
    """A call from a lower storey to a higher one."""

    caller: str
    callee: str
    function: str

    def __str__(self) -> str:
        return f"{self.caller} -> {self.callee}: {self.function}"


@dataclass
class Trace:
    """The calls that were traced."""

    #: (caller file, callee file, callee function) -> how often. The caller of a test is an empty string.
    calls: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    @property
    def upward(self) -> dict[Upward, int]:
        """The calls from a lower storey to a higher one, except those of a port."""
        return {
            Upward(caller, callee, function): count
            for (caller, callee, function), count in sorted(self.calls.items())
            if caller and storey_of(caller) < storey_of(callee) and package_of(callee) not in PORTS
        }

    def back_into(self, file: str) -> int:
        """How many calls of other files of the same package lead into this file, as from an engine's parts to it."""
        package = package_of(file)
        return sum(
            count
            for (caller, callee, _), count in self.calls.items()
            if callee == file != caller and package_of(caller) == package
        )

    def crossed(self) -> tuple[int, int]:
        """How many files and named functions were called, those of `lifecycle.testing` left out."""
        called = {(callee, function) for _, callee, function in self.calls if package_of(callee) != "testing"}
        named = {(file, function) for file, function in called if not function.endswith(">")}
        return len({file for file, _ in called}), len(named)


class Tracer:
    """Fills a `Trace` while `tracing` is entered. It counts each resumption of a coroutine as a call."""

    def __init__(self) -> None:
        self.trace = Trace()
        self._files: dict[CodeType, str | None] = {}
        self._creators: WeakKeyDictionary[asyncio.Task[Any], str] = WeakKeyDictionary()

    @contextmanager
    def tracing(self) -> Iterator[Trace]:
        """Traces what runs inside, on this thread and event loop; only there it may be entered."""
        loop = asyncio.get_running_loop()
        factory = loop.get_task_factory()
        loop.set_task_factory(self._new_task)
        before = sys.getprofile()
        sys.setprofile(self._profile)
        try:
            yield self.trace
        finally:
            sys.setprofile(before)
            loop.set_task_factory(factory)

    def _new_task(
        self, loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=loop, **options)
        self._creators[task] = self._caller_of(sys._getframe())
        return task

    def _profile(self, frame: FrameType, event: str, arg: object) -> None:
        if event != "call":
            return
        callee = self._file_of(frame.f_code)
        if callee is not None:
            self.trace.calls[self._caller_of(frame), callee, frame.f_code.co_qualname] += 1

    def _caller_of(self, frame: FrameType) -> str:
        """The file of the nearest frame of `lifecycle/` above this one, or the creator of the current task."""
        above = frame.f_back
        while above is not None:
            file = self._file_of(above.f_code)
            if file is not None:
                return file
            above = above.f_back
        task = asyncio.current_task() if asyncio._get_running_loop() is not None else None
        return "" if task is None else self._creators.get(task, "")

    def _file_of(self, code: CodeType) -> str | None:
        """The code's file, relative to `lifecycle/`; that of an adapter is `adapters/...`; None for any other."""
        if code not in self._files:
            self._files[code] = _relative(Path(code.co_filename))
        return self._files[code]


def _relative(path: Path) -> str | None:
    if path.is_relative_to(ROOT):
        return path.relative_to(ROOT).as_posix()
    adapters = ROOT.parent / "adapters"
    return f"adapters/{path.relative_to(adapters).as_posix()}" if path.is_relative_to(adapters) else None
