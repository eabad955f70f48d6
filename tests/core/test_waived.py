"""A claim that the policy waives, `accept={claim: Grade.ASSERTED}`: its state is entered, and it stays refuted."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from journal_rig import driver, kinds, read
from rig import V1, engine_in, sent

from lifecycle import Engine, Fleet, Grade, NotProved, Policy, State
from lifecycle.core.policy import WAIVABLE
from lifecycle.core.verdicts import Pending, Refuted
from lifecycle.rules.violations import violations
from lifecycle.testing import DONE, QUICK, ScriptedAdapter

#: Of an engine that gives no memory back; nobody else's memory hangs on it.
WAIVED = replace(QUICK, accept={"memory_returned": Grade.ASSERTED, "tags_unmapped": Grade.ASSERTED})


async def holding(policy: Policy) -> Engine:
    """A drained engine whose release is answered and frees nothing."""
    engine = await engine_in(State.DRAINED, policy=policy)
    engine.adapter.engine.frees = False
    return engine


def returned(engine: Engine) -> Refuted:
    """What hangs on the engine about its memory, which is refuted."""
    verdict = engine.conditions["memory_returned"].verdict
    assert isinstance(verdict, Refuted), verdict
    return verdict


async def test_the_whole_ring_on_an_engine_that_frees_nothing() -> None:
    engine = await holding(WAIVED)
    done = await engine.release(weights=V1, deadline_s=5)
    assert engine.state is State.RELEASED
    assert isinstance(done.verdicts["memory_returned"], Refuted)
    assert "returned 0 MiB of" in returned(engine).reason
    assert not engine.memory_is_free, "no device is handed over"
    assert done.returned_bytes is None
    await engine.restore_weights()
    await engine.update_weights(V1)
    await engine.restore_kv()
    await engine.resume()
    assert engine.state is State.SERVING
    assert sent(engine)[:3] == ["release(kv_cache)", "release(weights)", "restore(weights)"]


@pytest.mark.parametrize("claim", sorted(WAIVED.accept))
async def test_either_claim_alone_is_not_enough(claim: str) -> None:
    engine = await holding(replace(QUICK, accept={claim: Grade.ASSERTED}))
    with pytest.raises(NotProved) as failed:
        await engine.release(weights=V1, deadline_s=0.2)
    assert set(failed.value.verdicts) == set(WAIVED.accept) - {claim}
    assert engine.state is State.RELEASED


async def test_one_that_is_only_accepted_unseen_is_not_waived() -> None:
    engine = await holding(replace(QUICK, accept=dict.fromkeys(WAIVED.accept, Grade.ACKNOWLEDGED)))
    with pytest.raises(NotProved, match="memory_returned"):
        await engine.release(weights=V1, deadline_s=0.2)


async def test_memory_that_does_come_back_is_proved_all_the_same() -> None:
    engine = await engine_in(State.DRAINED, policy=WAIVED)
    done = await engine.release(weights=V1)
    assert engine.memory_is_free
    assert done.returned_bytes


async def test_it_is_waited_for_as_long_as_a_failed_command_is_looked_into_and_no_longer() -> None:
    engine = await holding(replace(WAIVED, settle_s=0.3))
    done = await engine.release(weights=V1, deadline_s=60)
    assert 0.3 <= done.duration_s < 30


async def test_memory_that_comes_back_meanwhile_is_proved_and_waited_for_no_more() -> None:
    engine = await engine_in(State.DRAINED, policy=replace(WAIVED, settle_s=20))
    model = engine.adapter.engine
    model.leak_bytes = 4 << 30
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    loop.call_at(begun_s + 0.1, setattr, model, "leaked_bytes", 0)
    done = await engine.release(weights=V1, deadline_s=60)
    assert loop.time() - begun_s >= 0.1
    assert done.duration_s < 10
    assert engine.memory_is_free


@pytest.mark.parametrize("claim", ["idle", "admission_closed", "answers", "weights_mapped", "kv_mapped", "cache_fresh"])
async def test_a_claim_that_a_request_relies_on_is_never_waived(claim: str) -> None:
    assert claim not in WAIVABLE
    policy = Policy(accept={claim: Grade.ASSERTED})
    assert not policy.takes(claim, Refuted(reason="no"))
    assert not policy.takes(claim, Pending(reason="not yet"))
    assert Policy(accept={"memory_returned": Grade.ASSERTED}).takes("memory_returned", Refuted(reason="no"))
    assert not Policy().takes("memory_returned", Refuted(reason="no"))


async def test_a_release_of_more_than_was_named_is_not_waived() -> None:
    """Which tags are there is unknown then, whatever is taken without proof."""
    engine = await engine_in(State.DRAINED, policy=WAIVED)
    engine.adapter.script("release", replace(DONE, then=lambda model: model.apply("release", {"tags": ["weights"]})))
    with pytest.raises(NotProved, match="more than what was named was released"):
        await engine.release(["kv_cache"], deadline_s=0.3)
    assert not engine.memory_is_free


async def test_a_window_opens_and_its_journal_is_in_order(tmp_path: Path) -> None:
    engine = driver(ScriptedAdapter(), tmp_path, policy={"accept": WAIVED.accept})
    await engine.connect()
    engine.adapter.engine.frees = False
    fleet = Fleet([engine])
    async with fleet.offloaded(weights=V1):
        assert engine.state is State.RELEASED
        assert not engine.memory_is_free
        await fleet.offload()
    assert engine.state is State.SERVING
    await engine.aclose()
    entries = read(tmp_path)
    assert "HandedOver" in kinds(entries)
    assert list(violations(entries)) == []
