"""What is claimed of a process that took an engine's place, and of one that did not answer to a close."""

from __future__ import annotations

import pytest
from rig import V1, engine_in

from lifecycle import Contents, NotProved, State, Unreachable
from lifecycle.testing import LIE, LOST_AFTER, RESTART_AFTER


async def test_a_close_whose_answer_was_lost_is_followed_by_no_claim() -> None:
    engine = await engine_in(State.RELEASED)
    engine.adapter.engine.restart()
    engine.adapter.script("pause", LOST_AFTER)
    with pytest.raises(Unreachable, match="another process now"):
        await engine.restore_weights(deadline_s=1)
    assert engine.state is State.FAILED
    assert engine.record.uncertain.needs_barrier
    assert (await engine.recover()).state is State.DRAINED


async def test_a_call_that_a_process_in_its_place_answered_may_have_moved_its_memory() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("release", RESTART_AFTER)
    with pytest.raises(Unreachable):
        await engine.release(weights=V1, deadline_s=1)
    model = engine.adapter.engine
    assert model.unmapped, "the new process carried out the second call"
    claimed = {tag for tag, mapped in engine.facts.mapped.items() if mapped}
    assert not claimed & set(model.unmapped)


async def test_a_restart_after_a_command_that_failed_and_settled_holds_what_it_launched_with() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("release", LIE)
    with pytest.raises(NotProved):
        await engine.release(weights=V1, deadline_s=0.3)
    assert engine.state.stable
    engine.adapter.engine.restart()
    await engine.recover()
    assert engine.facts.contents == {"weights": Contents("launched", "v0")}
