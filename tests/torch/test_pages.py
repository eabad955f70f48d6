"""The CPU backend returns memory that the process holds and does not use to the operating system."""

from __future__ import annotations

import gc
import os
import weakref

import torch
from lifecycle.adapters.torch_memory_saver.pages import PagesBackend

from lifecycle.nodes.process_memory import pss_bytes

MIB = 1 << 20


class Node:
    """Refers to itself, so that only the garbage collector frees it."""

    def __init__(self) -> None:
        self.itself = self


def test_garbage_is_collected() -> None:
    gc.disable()
    try:
        node = Node()
        ended = weakref.ref(node)
        del node
        assert ended() is not None
        PagesBackend().collect()
        assert ended() is None
    finally:
        gc.enable()


def test_freed_blocks_that_the_c_library_keeps_are_given_back() -> None:
    backend = PagesBackend()
    blocks = [torch.ones(MIB // 8) for _ in range(200)]  # 512 KiB each: below what is a mapping of its own
    held = pss_bytes(os.getpid())
    del blocks[:-1]
    backend.collect()
    assert pss_bytes(os.getpid()) < held - 80 * MIB
