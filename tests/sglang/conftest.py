"""Real loopback engines, and fleets over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from lifecycle.adapters.loopback import LoopbackProcess, make_weights

from lifecycle import Policy

#: Sizes at which a release is well above the noise of a process's memory.
WEIGHTS_MIB, KV_MIB = 96, 96

Start = Callable[..., LoopbackProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts engines that are stopped when the test ends."""
    with ExitStack() as stack:

        def begin(**options: object) -> LoopbackProcess:
            chosen = {"weights_mib": WEIGHTS_MIB, "kv_mib": KV_MIB, **options}
            return stack.enter_context(LoopbackProcess.start(**chosen))

        yield begin


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights than those that the engines start with."""
    path = tmp_path_factory.mktemp("checkpoint") / "step-2.safetensors"
    make_weights(path, seed=7, weights_mib=WEIGHTS_MIB)
    return path


@pytest.fixture
def policy() -> Policy:
    """Deadlines for engines that are near and small, and the threshold for the CPU."""
    deadlines = {"pause": 5, "drain": 5, "release": 5, "restore_weights": 5, "update_weights": 5, "restore_kv": 5}
    return Policy(residual_threshold_gib=0.25, deadlines_s={**deadlines, "resume": 5}, settle_s=1.0, poll_s=0.05)
