"""The calls of the CUDA backend to torch_memory_saver and torch, and their order. Tests on a GPU are in tests/gpu."""

from __future__ import annotations

import pytest
import torch
from lifecycle.adapters.torch_memory_saver import RegionRefused
from lifecycle.adapters.torch_memory_saver.saver import Tags

from lifecycle import ConfigurationError


def tags_of(mode: str) -> Tags:
    """Tags over the CUDA backend."""
    from lifecycle.adapters.torch_memory_saver.cuda import CudaBackend

    return Tags("policy", CudaBackend(torch.device("cuda"), hook_mode=mode))


def test_the_device_is_synchronised_before_a_pause_and_each_tag_goes_once(log: list[str]) -> None:
    tags = tags_of("torch")
    with tags.region("weights", "mmap"):
        pass
    with tags.region("kv_cache"):
        pass
    tags.release("kv_cache")
    tags.release("weights")
    tags.backend.collect()
    with pytest.raises(RegionRefused):
        tags.release("weights")
    tags.restore("weights")
    tags.restore("kv_cache")
    with pytest.raises(RegionRefused):
        tags.restore("kv_cache")
    assert log == [
        "retain True",
        "region {'tag': 'policy/weights', 'enable_cpu_backup': True, 'cpu_backup_backend': 'mmap'}",
        "region {'tag': 'policy/kv_cache'}",
        *("synchronize", "pause policy/kv_cache", "synchronize", "pause policy/weights"),
        *("gc", "empty_cache", "ipc_collect"),
        *("resume policy/weights", "resume policy/kv_cache"),
    ]
    assert (tags.bytes("weights"), tags.bytes("kv_cache")) == (1 << 21, 1 << 21)


def test_a_graph_has_memory_of_its_own_in_preload_only(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/x/torch_memory_saver_hook_mode_preload_cu13.abi3.so")
    tags = tags_of("preload")
    with tags.cuda_graph("the graph", "cuda_graph", {"pool": 7}):
        pass
    assert log == ["graph {'cuda_graph': 'the graph', 'tag': 'policy/cuda_graph', 'pool': 7}"]
    assert tags.bytes("cuda_graph") == 1 << 20


def test_a_graph_is_refused_in_hook_mode_torch(log: list[str]) -> None:
    refused = pytest.raises(ConfigurationError, match="hook mode 'torch' cannot release a CUDA graph's memory")
    with refused, tags_of("torch").cuda_graph("the graph", "cuda_graph", {}):
        pass
    assert log == []


def test_what_a_region_inside_another_took_is_its_own(log: list[str]) -> None:
    tags = tags_of("torch")
    with tags.region("kv_cache"), tags.region("workspace"):
        pass
    assert (tags.bytes("kv_cache"), tags.bytes("workspace")) == (1 << 21, 1 << 21)


def test_a_backup_takes_host_memory_once_and_more_only_as_it_grows(log: list[str]) -> None:
    tags = tags_of("torch")
    with tags.region("weights", "pinned"), tags.region("kv_cache"):
        pass
    assert (tags.host_bytes("weights"), tags.host_bytes("kv_cache")) == (1 << 21, 0)
    tags.release("weights")
    tags.restore("weights")
    assert tags.host_bytes("weights") == 0
    with tags.region("weights", "pinned"):
        pass
    assert tags.host_bytes("weights") == 1 << 21
