"""The conformance suite against loopback engines that speak tokenspeed: with one rank and with two."""

from __future__ import annotations

from typing import ClassVar

from lifecycle.adapters.loopback import LoopbackProcess
from test_loopback import MIB, checkpoint
from tokenspeed_subject import TokenspeedSubject

from lifecycle import Policy
from lifecycle.testing.conformance import EngineConformance, Subject

ARGUMENTS = ("--step-delay-s", "0.002", "--death-delay-s", "0.2")


class OnTokenspeed(EngineConformance):
    """What all have in common: the weights are kept at a release, and none are loaded from disk."""

    home = checkpoint(0)
    keeps = True
    modes = frozenset({"wait"})
    policy = Policy(residual_threshold_gib=0.2, settle_s=1.0, poll_s=0.02, pause_mode="wait")
    long = 150
    ranks: ClassVar[int] = 1

    def start(self) -> Subject:
        """A loopback engine with these ranks."""
        process = LoopbackProcess.start(
            weights_mib=MIB,
            kv_mib=MIB,
            ranks=self.ranks,
            weights=self.home.path,
            dialect="tokenspeed:0.1.1",
            arguments=ARGUMENTS,
        )
        return TokenspeedSubject(process, (MIB << 20) // self.ranks)


class TestTokenspeed(OnTokenspeed):
    """One rank."""

    engine = "tokenspeed 0.1.1"


class TestTokenspeedRanks(OnTokenspeed):
    """Two ranks, each a process of its own."""

    engine = "tokenspeed 0.1.1 2 ranks"
    ranks = 2
