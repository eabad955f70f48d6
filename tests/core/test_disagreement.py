"""Ranks of one engine that do not say the same: whether it admits requests is unknown, and nothing is claimed of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rig import engine_in, facts

from lifecycle import NotProved, State
from lifecycle.core.observation import Observation
from lifecycle.core.record import Record
from lifecycle.rules import knowledge
from lifecycle.rules.contradiction import contradiction
from lifecycle.testing import ScriptedAdapter, capabilities

SEEN = Observation(boot="boot-1", alive=True, disagreement="its ranks disagree ([True, False])")


def after(**known: object) -> Record:
    """What is known after that was seen of an engine of which this was."""
    return knowledge.after_observation(Record(state=State.DRAINED, facts=facts(**known)), SEEN, capabilities())


@pytest.mark.parametrize("left", ["open", "closed"])
def test_it_denies_what_either_is_left_as(left: str) -> None:
    denied = contradiction(Record(state=State.PAUSED, facts=facts(admission=left)), SEEN)
    assert denied == f"its ranks disagree ([True, False]), and it was left {left}"
    assert contradiction(Record(state=State.FAILED, facts=facts(admission=None)), SEEN) is None


def test_its_admission_is_unknown_then_and_what_runs_is_too() -> None:
    known = after(running=None).facts
    assert (known.admission, known.running) == (None, None)
    assert known.mapped == {"weights": True, "kv_cache": True}, "a pause of ours that one rank missed explains it"


def test_who_opened_a_rank_of_an_idle_engine_may_have_moved_its_memory() -> None:
    assert after(running=0).facts.mapped == {"weights": None, "kv_cache": None}


async def test_an_acknowledged_pause_proves_nothing_then(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await engine_in(State.SERVING)
    observe = ScriptedAdapter.observe

    async def disagreeing(self: ScriptedAdapter, *want: object, **how: object) -> Observation:
        seen = await observe(self, *want, **how)  # type: ignore[arg-type]
        paused = self.engine.admission == "closed"
        return replace(seen, admission=None, disagreement=SEEN.disagreement) if paused else seen

    monkeypatch.setattr(ScriptedAdapter, "observe", disagreeing)
    with pytest.raises(NotProved, match=r"admission_closed is refuted: its ranks disagree \(\[True, False\]\)"):
        await engine.pause(deadline_s=2)
    assert engine.state is State.FAILED
    assert engine.facts.admission is None
    monkeypatch.undo()
    assert (await engine.recover()).state is State.PAUSED
