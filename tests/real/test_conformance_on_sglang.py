"""The conformance suite on a real SGLang: a chosen few cases. The loopback engine takes all, and does the dying."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from lane import POLICY, Lane, address, kill_tree, output, source
from server import RealSGLang

from lifecycle.testing.conformance import EngineConformance, Subject

#: One case for each thing that could differ between the real engine and the one that stands for it.
CHOSEN = {
    "test_it_is_what_its_author_says",
    "test_row[release-from-weights_restored]",
    "test_update[update_weights-from-paused]",
    "test_kv_first_and_then_the_weights",
    "test_not_allowed_here[drained]",
    "test_nothing_is_sent_twice",
    "test_a_checkpoint_that_is_not_there",
    "test_in_flight[wait]",
    "test_in_flight[freeze]",
    "test_a_request_that_comes_while_it_is_paused",
    "test_lost[release-answer-lost-last]",
    "test_lost[restore_weights-never-sent-first]",
    "test_lost[restore_kv-answer-lost-first]",
    "test_cancelled[release-on-its-way]",
    "test_cancelled[update_weights-when-answered]",
    "test_looked_at[released]",
    "test_met_afresh[released]",
    "test_taken_over[released]",
}


@dataclass(frozen=True)
class RealSubject:
    """A running server of the lane, which the lane stops."""

    server: RealSGLang

    @property
    def url(self) -> str:
        """Where it is, with the adapter's options."""
        return address(self.server).replace("name=e&", "")

    def generate(self, text: str, tokens: int) -> list[int]:
        """The greedy token ids that a client gets."""
        return output(self.server, text, tokens)

    def kill(self) -> None:
        """No process of the server is left."""
        kill_tree(self.server)

    def stop(self) -> None:
        """It runs on where it can serve the next: a start costs a minute."""


class TestSGLang(EngineConformance):
    """SGLang 0.5.23 without a weights backup."""

    engine = "sglang 0.5.23"
    home = source(0)
    other = source(1)
    modes = frozenset({"abort", "wait", "keep", "freeze"})
    policy = POLICY
    long = 120
    lane: ClassVar[Any] = None

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _with_the_lane(cls, lane: Lane) -> Iterator[None]:
        """The class starts its servers by the lane of this run."""
        cls.lane = lane
        yield
        cls.lane = None

    def start(self) -> Subject:
        """The lane's server, a new one where a case spoilt the last."""
        if not self.fresh:
            self.lane.stop()
        type(self).fresh = False
        return RealSubject(self.lane.serve("plain"))

    fresh: ClassVar[bool] = True
