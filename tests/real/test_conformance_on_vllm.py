"""The conformance suite on a real vLLM: a chosen few cases. The loopback engine takes all, and does the dying."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from lane import kill_tree
from vllm_lane import UNSEEN, VLLMLane, address, output, source
from vllm_real import RealVLLM

from lifecycle.core.frozen import replace
from lifecycle.testing.conformance import EngineConformance, Subject

#: One case for each thing that could differ between the real engine and the one that stands for it. None of those that
#: a release ends: they ask that its memory is free then, and on a CPU it never is. Nor a restore whose answer is lost:
#: whether it was carried out only the memory could tell.
CHOSEN = {
    "test_it_is_what_its_author_says",
    "test_answers_differ",
    "test_row[restore_weights-from-released]",
    "test_update[update_weights-from-paused]",
    "test_update[update_weights-from-weights_restored]",
    "test_not_allowed_here[drained]",
    "test_nothing_is_sent_twice",
    "test_a_pause_again_is_a_pause",
    "test_a_request_that_comes_while_it_is_paused",
    "test_lost[release-answer-lost-last]",
    "test_cancelled[release-on-its-way]",
    "test_cancelled[update_weights-when-answered]",
    "test_met_afresh[drained]",
    "test_taken_over[released]",
}


@dataclass(frozen=True)
class RealSubject:
    """A running server of the lane, which the lane stops."""

    server: RealVLLM

    @property
    def url(self) -> str:
        """Where it is, with the adapter's options."""
        return address(self.server).replace("name=e&", "")

    def generate(self, text: str, tokens: int) -> list[int]:
        """The greedy token ids that a client gets."""
        return output(self.server, text, tokens)

    def kill(self) -> None:
        """Every process of it is killed."""
        kill_tree(self.server)

    def stop(self) -> None:
        """It stays for the tests that follow."""


class TestRealVLLM(EngineConformance):
    """A vLLM on a CPU, of whose memory nothing can be seen to move, by consent."""

    engine = "vllm 0.32.0"
    home = source(0)
    other = source(1)
    modes = frozenset({"abort", "wait", "keep", "freeze"})
    policy = replace(UNSEEN, visible_bytes=1 << 40)
    long: ClassVar[int] = 300

    lane: ClassVar[Any] = None

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _with_the_lane(cls, vllm_lane: VLLMLane) -> Iterator[None]:
        """The class has the server of this run."""
        cls.lane = vllm_lane
        yield
        cls.lane = None

    def start(self) -> Subject:
        """The running server. Its weights are those that it was launched with."""
        return RealSubject(self.lane.serve("plain"))
