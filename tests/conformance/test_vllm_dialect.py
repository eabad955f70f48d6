"""The conformance suite against loopback engines that speak vLLM: level 2 and level 1, two ranks, and each version."""

from __future__ import annotations

from typing import ClassVar

from lifecycle.adapters.loopback import LoopbackProcess
from test_loopback import MIB, checkpoint
from vllm_subject import VLLMSubject

from lifecycle import Policy
from lifecycle.testing.conformance import EngineConformance, Subject

ARGUMENTS = ("--step-delay-s", "0.002", "--load-tracking", "--death-delay-s", "0.2")


class OnVLLM(EngineConformance):
    """What all have in common."""

    home = checkpoint(0)
    other = checkpoint(1)
    modes = frozenset({"abort", "wait", "keep", "freeze"})
    policy = Policy(residual_threshold_gib=0.2, settle_s=1.0, poll_s=0.02)
    long = 150
    ranks: ClassVar[int] = 1
    version: ClassVar[str] = "0.32"

    def start(self) -> Subject:
        """A loopback engine with these ranks, of this version."""
        process = LoopbackProcess.start(
            weights_mib=MIB,
            kv_mib=MIB,
            ranks=self.ranks,
            weights=self.home.path,
            dialect=f"vllm:{self.version}",
            arguments=ARGUMENTS,
        )
        return VLLMSubject(process, (MIB << 20) // self.ranks)


class TestVLLM(OnVLLM):
    """Weights are discarded at a release, by sleep level 2."""

    engine = "vllm 0.32"


class TestVLLMKept(OnVLLM):
    """Weights are kept at a release, by sleep level 1."""

    engine = "vllm 0.32 kept"
    keeps = True


class TestVLLMRanks(OnVLLM):
    """Two ranks, each a process of its own."""

    engine = "vllm 0.32 2 ranks"
    ranks = 2


class TestVLLM24(OnVLLM):
    """A version that says nothing of what it did, without labels, and without a release of KV alone."""

    engine = "vllm 0.24"
    version = "0.24"


class TestVLLM30(OnVLLM):
    """A version with labels that says nothing of what sleeps."""

    engine = "vllm 0.30"
    version = "0.30"


class TestVLLM33(OnVLLM):
    """A version that refuses new requests while it is paused by abort or wait."""

    engine = "vllm 0.33"
    version = "0.33"
