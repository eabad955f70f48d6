"""Real loopback engines that others drive too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from lifecycle.adapters.loopback import LoopbackProcess, make_weights

from lifecycle import FromDisk, Policy

#: Tags of different sizes, each well above the noise of a process's memory.
WEIGHTS_MIB, KV_MIB = 128, 80

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
def step_1(tmp_path_factory: pytest.TempPathFactory) -> FromDisk:
    """Other weights than those that the engines start with."""
    path = tmp_path_factory.mktemp("checkpoint") / "step-1.safetensors"
    make_weights(path, seed=7, weights_mib=WEIGHTS_MIB)
    return FromDisk(str(path), "step-1")


@pytest.fixture
def policy() -> Policy:
    """Deadlines for engines that are near and small, and the threshold for the CPU."""
    commands = ("pause", "drain", "release", "restore_weights", "update_weights", "restore_kv", "resume")
    deadlines_s = dict.fromkeys(commands, 10.0)
    return Policy(residual_threshold_gib=0.125, deadlines_s=deadlines_s, settle_s=1.0, poll_s=0.05)
