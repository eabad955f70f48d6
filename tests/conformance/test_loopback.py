"""The conformance suite against loopback engines: with one rank, with two, and with a backup of the weights."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from lifecycle.adapters.loopback import LoopbackProcess, make_weights
from subject import LoopbackSubject

from lifecycle import FromDisk, Policy
from lifecycle.testing.conformance import EngineConformance, Subject

MIB = 72
ARGUMENTS = ("--abort-poll-s", "0.02", "--step-delay-s", "0.002")


@cache
def checkpoint(seed: int) -> FromDisk:
    """The checkpoint of this seed, made once."""
    path = Path(tempfile.gettempdir()) / f"conformance-{seed}-{MIB}.safetensors"
    if not path.exists():
        make_weights(path, seed=seed, weights_mib=MIB)
    return FromDisk(str(path), f"seed-{seed}")


class OnLoopback(EngineConformance):
    """What all have in common."""

    home = checkpoint(0)
    other = checkpoint(1)
    modes = frozenset({"abort", "wait", "keep", "freeze"})
    policy = Policy(residual_threshold_gib=0.3, settle_s=1.0, poll_s=0.02)
    long = 150
    ranks = 1

    def start(self) -> Subject:
        """A loopback engine with these ranks."""
        process = LoopbackProcess.start(
            weights_mib=MIB,
            kv_mib=MIB,
            ranks=self.ranks,
            weights=self.home.path,
            weights_backup=self.keeps,
            arguments=ARGUMENTS,
        )
        return LoopbackSubject(process)


class TestLoopback(OnLoopback):
    """One rank, weights discarded at a release."""

    engine = "loopback"


class TestLoopbackBackup(OnLoopback):
    """One rank that keeps a backup of its weights."""

    engine = "loopback backup"
    keeps = True


class TestLoopbackRanks(OnLoopback):
    """Two ranks, each a process of its own."""

    engine = "loopback 2 ranks"
    ranks = 2
