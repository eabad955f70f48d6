"""The conformance suite against a loopback engine that is driven by declared verbs alone."""

from __future__ import annotations

import sys
from pathlib import Path

from lifecycle.adapters.declared import DeclaredAdapter
from test_loopback import MIB, OnLoopback, checkpoint

sys.path.append(str(Path(__file__).parents[1] / "declared"))
from loopback_verbs import adapter_of
from subject import LoopbackSubject

from lifecycle.testing.conformance import Subject


class TestDeclaredVerbs(OnLoopback):
    """One rank, weights discarded at a release; requests are written by hand, and nothing but them is known."""

    engine = "declared verbs"
    home = checkpoint(0)
    modes = frozenset({"abort", "keep", "freeze"})

    def adapter(self, subject: Subject) -> DeclaredAdapter:
        """The verbs of the process, in place of an adapter of its own."""
        assert isinstance(subject, LoopbackSubject)
        return adapter_of(subject.process, size_mib=MIB)
