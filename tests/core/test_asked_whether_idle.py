"""An engine whose state hangs on whether requests run, which nothing that is read tells: recovery asks it."""

from __future__ import annotations

import pytest
from rig import V1, serving

from lifecycle import Engine, Fact, Pending, State
from lifecycle.core.frozen import replace
from lifecycle.core.verdicts import Verdict


async def half_restored_and_unknown() -> Engine:
    """Kept requests are not counted. A call whose answer was lost left unknown whether requests run."""
    engine = await serving()
    await engine.pause("keep")
    await engine.drain()
    await engine.release(["kv_cache"])
    await engine.restore_weights()
    record = engine._session.record
    engine._session.commit(replace(record, facts=record.facts.doubt({Fact.RUNNING: None})))
    engine._session.go("contradicted", reason="a test")
    engine.adapter.journal.clear()
    return engine


async def test_one_that_is_idle_is_found_and_goes_on() -> None:
    engine = await half_restored_and_unknown()
    assert (await engine.recover()).state is State.WEIGHTS_RESTORED
    assert engine.facts.running == 0
    await engine.restore_kv()
    await engine.resume()
    assert engine.state is State.SERVING


@pytest.mark.parametrize("verdict", [Pending(reason="requests still run")], ids=str)
async def test_one_that_is_not_stays_where_it_is(verdict: Verdict) -> None:
    engine = await half_restored_and_unknown()
    engine.adapter.script("prove_idle", verdict)
    assert (await engine.recover()).state is State.FAILED
    assert engine.facts.running is None
    assert "that it is idle" in engine.reason
    await engine.recover()
    assert engine.state is State.WEIGHTS_RESTORED


async def test_it_is_not_asked_where_its_state_does_not_hang_on_that() -> None:
    engine = await serving()
    await engine.pause("keep")
    engine._session.go("contradicted", reason="a test")
    engine.adapter.journal.clear()
    assert (await engine.recover()).state is State.PAUSED
    assert not [entry for entry in engine.adapter.journal if entry.kind == "idle"]
    await engine.drain()
    await engine.release(weights=V1)
