"""The calls of staging to a CUDA device, and their order. The device is a stand-in, and the bytes are on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lifecycle.adapters.torch_memory_saver import HostBudget, HostStaging, host_memory, staging
from lifecycle.adapters.torch_memory_saver.host_memory import FileSlab
from lifecycle.adapters.torch_memory_saver.tensors import Span

MIB = 1 << 20
DEVICE = torch.device("cuda", 0)


class OnCuda(Span):
    """A span on the CPU that reports a CUDA device."""

    device = DEVICE

    def bytes(self, offset: int = 0, size: int | None = None) -> torch.Tensor:
        return Span(self.storage, self.start, self.stop, self.names).bytes(offset, size)


class Staging(HostStaging):
    """Stages spans that report a CUDA device."""

    def _spans(self) -> list[Span]:
        return [OnCuda(each.storage, each.start, each.stop, each.names) for each in super()._spans()]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls, in order."""
    log: list[str] = []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            log.append(f"a stream of {device}")

        def synchronize(self) -> None:
            log.append("the stream has ended")

    @contextlib.contextmanager
    def over(stream: Stream) -> Iterator[None]:
        log.append("over the stream")
        yield
        log.append("not over it")

    class Pinned(FileSlab):
        def __init__(self, size: int) -> None:
            log.append(f"{size // MIB} MiB pinned")
            super().__init__(size)

    copied = staging._copy_pieces

    def copy(found: Any, pieces: Any, host: Any, to_host: bool) -> None:
        sizes = [piece.size // MIB for piece in pieces]
        log.append(f"{sizes} MiB to the {'host' if to_host else 'device'}")
        copied(found, pieces, host, to_host)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", over)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append(f"{device} has ended"))
    monkeypatch.setattr(host_memory, "PinnedSlab", Pinned)
    monkeypatch.setattr(staging, "_copy_pieces", copy)
    return log


def test_copies_go_over_one_side_stream_which_has_ended_both_ways(log: list[str]) -> None:
    model = torch.nn.Module()
    for name, size in (("small", MIB), ("large", 4 * MIB)):
        model.register_buffer(name, torch.randint(0, 256, (size,), dtype=torch.uint8))
    before = model.large.clone()
    staged = Staging({"target": model}, budget=HostBudget(64 * MIB), slab_bytes=2 * MIB)
    over = ["over the stream", "not over it", "the stream has ended"]
    for cycle in range(2):
        log.clear()
        staged.stage()
        made = ["2 MiB pinned", "2 MiB pinned", "1 MiB pinned"] if cycle == 0 else []
        stream = ["a stream of cuda:0"] if cycle == 0 else []
        copies = "[2, 2, 1] MiB to the host"
        assert log == [*made, "cuda:0 has ended", *stream, over[0], copies, *over[1:]], "the large one first"
        model.large.zero_()
        log.clear()
        staged.restore()
        assert log == [over[0], "[2, 2, 1] MiB to the device", *over[1:]]
        assert torch.equal(model.large, before)
    staged.close()


def test_copies_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    copy = torch.Tensor.copy_

    def noted(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        asked.append(non_blocking)
        return copy(self, source, non_blocking)

    staged = HostStaging({"target": {"a": torch.ones(10), "b": torch.ones(20)}})
    monkeypatch.setattr(torch.Tensor, "copy_", noted)
    staged.stage()
    staged.restore()
    assert asked == [True] * 4
    staged.close()
