"""Stand-ins for torch_memory_saver and torch.cuda that need no GPU and record the calls made to them."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator

import pytest
import torch
from lifecycle.adapters.torch_memory_saver import cuda, hooks


class Saver:
    """The API of torch_memory_saver. Where the real one exits the process, this one fails the test."""

    _impl = None

    def __init__(self, log: list[str], segments: dict[int, int]) -> None:
        self.log, self.segments, self.paused = log, segments, set()
        self.hook_mode = None

    def __setattr__(self, name: str, value: object) -> None:
        if name == "retain_cpu_backup":
            self.log.append(f"retain {value}")
        super().__setattr__(name, value)

    @contextlib.contextmanager
    def region(self, **options) -> Iterator[None]:
        self.log.append(f"region {options}")
        yield
        self.segments[len(self.segments) * (1 << 21) + (1 << 30)] = 1 << 21

    @contextlib.contextmanager
    def cuda_graph(self, **options) -> Iterator[None]:
        self.log.append(f"graph {options}")
        yield
        self.segments[len(self.segments) * (1 << 21) + (1 << 30)] = 1 << 20

    def pause(self, tag: str) -> None:
        assert tag not in self.paused
        self.paused.add(tag)
        self.log.append(f"pause {tag}")

    def resume(self, tag: str) -> None:
        self.paused.remove(tag)
        self.log.append(f"resume {tag}")


def installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Installs the stand-ins, with one CUDA device, and returns the log of their calls."""
    log: list[str] = []
    segments: dict[int, int] = {1 << 40: 1 << 21}
    saver = Saver(log, segments)
    monkeypatch.setitem(sys.modules, "torch_memory_saver", types.SimpleNamespace(torch_memory_saver=saver))
    monkeypatch.setattr(hooks, "_fixed", [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    snapshot = lambda: [{"address": at, "total_size": size, "device": 0} for at, size in segments.items()]  # noqa: E731
    monkeypatch.setattr(torch.cuda, "memory_snapshot", snapshot)
    for name in ("synchronize", "empty_cache", "ipc_collect"):
        monkeypatch.setattr(torch.cuda, name, lambda *args, name=name: log.append(name))
    monkeypatch.setattr(cuda.gc, "collect", lambda: log.append("gc"))
    return log
