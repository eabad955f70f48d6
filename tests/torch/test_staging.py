"""Host staging alone: its buffers, its budget and its refusals."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
from lifecycle.adapters.torch_memory_saver import HostBudget, HostMemoryShort, HostStaging, ModulesChanged
from lifecycle.adapters.torch_memory_saver.checksum import checksum
from lifecycle.adapters.torch_memory_saver.errors import CannotStage, Refused, StagingCorrupt
from lifecycle.adapters.torch_memory_saver.host_memory import HostBuffers, pinned_bytes
from lifecycle.adapters.torch_memory_saver.tensors import leaves, spans

MIB = 1 << 20


def module(*sizes: int) -> torch.nn.Module:
    """A module with one buffer of each size, in bytes."""
    made = torch.nn.Module()
    for index, size in enumerate(sizes):
        made.register_buffer(f"b{index}", torch.randint(0, 256, (size,), dtype=torch.uint8))
    return made


def open_files() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


def test_buffers_are_reused_and_given_back() -> None:
    budget = HostBudget(64 * MIB)
    staging = HostStaging({"target": module(5 * MIB, 100)}, budget=budget, slab_bytes=2 * MIB)
    files = open_files()
    staging.stage()
    taken = budget.taken_bytes
    assert staging.host_bytes == taken == 5 * MIB + 4096
    assert staging.needed_bytes() == 0
    for _ in range(3):
        staging.restore()
        staging.stage()
        assert (staging.host_bytes, budget.taken_bytes) == (taken, taken)
    staging.close()
    assert (staging.host_bytes, budget.taken_bytes, open_files()) == (0, 0, files)


def test_a_budget_is_shared_and_refuses_before_anything_is_allocated() -> None:
    budget = HostBudget(10 * MIB)
    first = HostStaging({"target": module(6 * MIB)}, budget=budget)
    second = HostStaging({"draft": module(6 * MIB)}, budget=budget)
    first.stage()
    files = open_files()
    with pytest.raises(HostMemoryShort, match="needs 6 MiB more of host memory and 4 MiB is left") as short:
        second.stage()
    assert (short.value.needed_bytes, short.value.allowed_bytes) == (6 * MIB, 4 * MIB)
    assert (open_files(), budget.taken_bytes, second.holds) == (files, 6 * MIB, False)
    first.close()
    second.stage()


def test_a_host_without_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifecycle.adapters.torch_memory_saver.host_memory.available_bytes", lambda: 3 * MIB)
    with pytest.raises(HostMemoryShort, match="1 MiB is free, 2 MiB being left to others"):
        HostStaging({"target": module(2 * MIB)}, budget=HostBudget(reserve_bytes=2 * MIB)).stage()


def test_a_failed_allocation_gives_its_budget_back(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = HostBudget()
    buffers = HostBuffers(budget, slab_bytes=MIB)
    allocate, sizes = os.posix_fallocate, []

    def second_fails(file: int, offset: int, size: int) -> None:
        sizes.append(size)
        if len(sizes) == 2:
            raise OSError("no memory")
        allocate(file, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", second_fails)
    files = open_files()
    with pytest.raises(OSError, match="no memory"):
        buffers.ensure(3 * MIB, pinned=False)
    gc.collect()
    assert (budget.taken_bytes, open_files()) == (0, files)


def test_pinned_sizes_are_what_torch_really_takes() -> None:
    assert [pinned_bytes(size) for size in (1, 2, 3, 4096, 4097, 256 * MIB)] == [1, 2, 4, 4096, 8192, 256 * MIB]
    buffers = HostBuffers(HostBudget(), slab_bytes=256 * MIB)
    assert buffers.short_bytes(256 * MIB + 3, pinned=True) == 256 * MIB + 4


def test_what_is_staged_is_outside_the_process() -> None:
    staging = HostStaging({"target": module(64 * MIB)})
    before = resident_bytes()
    staging.stage()
    assert resident_bytes() - before < 8 * MIB


def resident_bytes() -> int:
    """Bytes that this process holds."""
    line = next(each for each in Path("/proc/self/smaps_rollup").read_text().splitlines() if each.startswith("Pss:"))
    return int(line.split()[1]) * 1024


def test_restoring_twice_or_nothing_is_refused() -> None:
    staging = HostStaging({"target": module(10)})
    with pytest.raises(Refused, match="nothing is staged"):
        staging.restore()
    staging.stage()
    staging.restore()
    with pytest.raises(Refused, match="nothing is staged"):
        staging.restore()


def test_a_tensor_that_was_replaced_is_named_and_nothing_is_written() -> None:
    made = module(10, 20)
    staging = HostStaging({"target": made})
    staging.stage()
    made.b0.zero_()
    made.b1 = torch.zeros(20, dtype=torch.uint8)
    with pytest.raises(ModulesChanged, match=r"target.b1 was replaced"):
        staging.restore()
    assert not made.b0.any()
    assert staging.holds


def test_bytes_that_came_back_wrong_are_named() -> None:
    made = module(MIB, 300)
    staging = HostStaging({"target": made}, checksum=True)
    staging.stage()
    with staging._buffers.slabs[0].open() as host:
        host[MIB + 7] ^= 1
    with pytest.raises(StagingCorrupt, match=r"differs for target.b1"):
        staging.restore()
    assert not staging.holds


def test_a_lazy_parameter_is_refused_by_name() -> None:
    staging = HostStaging({"target": torch.nn.Sequential(torch.nn.LazyLinear(4))})
    with pytest.raises(CannotStage, match=r"target.0.weight is not initialised yet"):
        staging.stage()


def test_optimizer_states_are_staged() -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(3)).sum().backward()
    optimizer.step()
    names = [leaf.name for leaf in leaves({"optimizer": optimizer})]
    assert names == [f"optimizer.{i}.{each}" for i in (0, 1) for each in ("step", "exp_avg", "exp_avg_sq")]


def test_a_view_of_a_large_storage_takes_only_its_bytes() -> None:
    pool = torch.zeros(MIB, dtype=torch.uint8)
    (span,) = spans(leaves({"target": {"row": pool[4096:8192], "half": pool[6000:7000]}}))
    assert (span.start, span.stop, span.names) == (4096, 8192, ("target.row", "target.half"))


@pytest.mark.parametrize("size", [1, 7, 8, 4095, MIB, MIB + 1, 3 * MIB + 5])
def test_a_checksum_sees_every_byte_and_its_place(size: int) -> None:
    data = torch.randint(0, 256, (size + 3,), dtype=torch.uint8)
    whole = checksum(data[:size])
    assert whole == checksum(data[:size].clone()) == checksum(torch.cat([data[:3], data])[3 : size + 3])
    for place in {0, size // 2, size - 1}:
        other = data[:size].clone()
        other[place] ^= 0x80
        assert checksum(other) != whole
    assert checksum(torch.cat([data[:size], torch.zeros(1, dtype=torch.uint8)])) != whole
    if size > MIB:
        swapped = data[:size].clone()
        swapped[0:8], swapped[MIB - 8 : MIB] = data[MIB - 8 : MIB].clone(), data[0:8].clone()
        assert checksum(swapped) != whole
