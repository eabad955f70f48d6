"""What an answer alone said is not known: a call that answered and did nothing, and nobody had asked its proof yet."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from rig import V1, engine_in

from lifecycle import GuardRefused, NotProved, OperationFailed, Pushed, Rejected, State, TagSpec, Unreachable
from lifecycle.testing import CUDA_GRAPH, KV_CACHE, LIE, LOST, REJECTED, WEIGHTS, Act

TWO_KV = (WEIGHTS, CUDA_GRAPH, KV_CACHE)
NEVER = Pushed(lambda engines: asyncio.sleep(0), "v1")


async def test_a_load_that_did_nothing_did_not_drop_the_cache_either() -> None:
    engine = await engine_in(State.WEIGHTS_RESTORED)
    engine.adapter.script("load", LIE)
    with pytest.raises(NotProved, match="weights_match"):
        await engine.update_weights(V1, deadline_s=1)
    assert engine.state is State.WEIGHTS_RESTORED
    assert engine.facts.contents == {"weights": None}
    assert engine.facts.cache_fresh is None
    assert not engine.adapter.engine.cache_fresh


@pytest.mark.parametrize("act", [LIE, Act("done", "late", after_calls=5)], ids=["never", "later"])
async def test_a_tag_whose_own_release_gave_nothing_back_is_missed_among_bigger_ones(act: Act) -> None:
    engine = await engine_in(State.DRAINED, *TWO_KV)
    engine.adapter.script("release", act)
    with pytest.raises(NotProved, match="the release of cuda_graph gave nothing back") as failed:
        await engine.release(weights=V1, deadline_s=0.3)
    assert failed.value.settled is State.RELEASED
    assert not engine.memory_is_free, "12 of 13 GiB came back, and below the threshold: not those of cuda_graph"


async def test_what_an_earlier_release_did_not_give_back_is_not_free_by_a_later_one() -> None:
    engine = await engine_in(State.DRAINED, *TWO_KV)
    engine.adapter.script("release", LIE)
    with pytest.raises(NotProved):
        await engine.release(weights=V1, deadline_s=0.3)
    await engine.restore_weights()
    with pytest.raises(NotProved, match="the release of cuda_graph gave nothing back"):
        await engine.release(weights=V1, deadline_s=0.3)  # of the weights, which do come back
    assert not engine.memory_is_free


async def test_a_later_release_is_proved_where_the_earlier_one_was() -> None:
    engine = await engine_in(State.RELEASED, *TWO_KV)
    await engine.restore_weights()
    await engine.release(weights=V1)
    assert engine.memory_is_free


async def test_bytes_that_come_back_a_call_later_are_not_missed() -> None:
    engine = await engine_in(State.DRAINED, *TWO_KV)
    engine.adapter.script("release", Act("done", "late", after_calls=1))
    await engine.release(weights=V1, deadline_s=1)
    assert engine.memory_is_free


async def test_a_tag_too_small_to_see_is_not_missed() -> None:
    engine = await engine_in(State.DRAINED, WEIGHTS, TagSpec("small_kv", "kv", "discarded", 1 << 20))
    engine.adapter.script("release", LIE)
    await engine.release(weights=V1, deadline_s=1)
    assert engine.memory_is_free


async def test_a_push_that_nobody_proved_leaves_unknown_what_is_loaded() -> None:
    engine = await engine_in(State.DRAINED)
    update = asyncio.create_task(engine.update_weights(NEVER))
    for _ in range(100):
        await asyncio.sleep(0)
        if engine.adapter.journal.kinds("reply")[-1:] == ["e: reply flush -> done"]:
            break
    assert update.cancel()
    with pytest.raises(asyncio.CancelledError):
        await update
    assert engine.state is State.FAILED
    assert engine.facts.contents == {"weights": None}, "its end was answered, and nothing had been sent"
    await engine.recover()
    with pytest.raises(GuardRefused, match="contents unknown"):
        await engine.resume()


async def test_a_push_of_which_a_later_call_failed_leaves_unknown_what_is_loaded() -> None:
    engine = await engine_in(State.DRAINED, version=None)  # it reports no label
    engine.adapter.script("flush", REJECTED)
    with pytest.raises(Rejected):
        await engine.update_weights(NEVER, deadline_s=1)
    assert engine.facts.contents == {"weights": None}
    with pytest.raises(GuardRefused, match="contents unknown"):
        await engine.resume()


@pytest.mark.parametrize("act", [LIE, Act()], ids=["it did nothing", "it did it"])
async def test_a_restore_of_which_a_later_call_failed_is_decided_by_its_bytes(act: Act) -> None:
    engine = await engine_in(State.WEIGHTS_RESTORED)
    await engine.update_weights(V1)
    engine.adapter.script("restore", act)
    engine.adapter.script("flush", REJECTED)
    with pytest.raises(Rejected):
        await engine.restore_kv(deadline_s=1)
    assert engine.facts.mapped["kv_cache"] is (act is not LIE)
    assert engine.state is (State.WEIGHTS_RESTORED if act is LIE else State.DRAINED)


@pytest.mark.parametrize("lies", [(LIE, Act()), (Act(), LIE)], ids=["the first", "the second"])
async def test_a_flush_that_is_lost_does_not_bear_out_the_restores_before_it(lies: tuple[Act, Act]) -> None:
    engine = await engine_in(State.WEIGHTS_RESTORED, *TWO_KV)
    await engine.update_weights(V1)
    engine.adapter.script("restore", *lies)
    engine.adapter.script("flush", LOST)
    with pytest.raises(Unreachable):
        await engine.restore_kv(deadline_s=1)
    unmapped = engine.adapter.engine.unmapped
    assert len(unmapped) == 1
    assert engine.facts.mapped == {tag: tag not in unmapped for tag in ("weights", "cuda_graph", "kv_cache")}
    assert engine.state is State.WEIGHTS_RESTORED, "the bytes that moved are those of one tag alone"
    await engine.restore_kv()
    assert engine.adapter.engine.violations == []


async def test_a_lost_restore_does_not_bear_out_the_one_before_that_did_nothing() -> None:
    engine = await engine_in(State.WEIGHTS_RESTORED, *TWO_KV)
    await engine.update_weights(V1)
    engine.adapter.script("restore", LIE, LOST)
    with pytest.raises(Unreachable):
        await engine.restore_kv(deadline_s=1)
    assert engine.adapter.engine.unmapped == {"cuda_graph", "kv_cache"}
    assert engine.facts.mapped == {"weights": True, "cuda_graph": False, "kv_cache": False}
    assert engine.state is State.WEIGHTS_RESTORED, "no byte moved: neither call did anything"


async def test_of_two_tags_of_one_size_nothing_shows_which_was_restored() -> None:
    alike = (WEIGHTS, KV_CACHE, replace(KV_CACHE, name="other_kv"))
    engine = await engine_in(State.WEIGHTS_RESTORED, *alike)
    await engine.update_weights(V1)
    engine.adapter.script("restore", LIE, Act())
    engine.adapter.script("flush", LOST)
    with pytest.raises(Unreachable):
        await engine.restore_kv(deadline_s=1)
    assert engine.facts.mapped == {"weights": True, "kv_cache": None, "other_kv": None}
    assert engine.state is State.FAILED


async def test_a_failure_of_what_was_refused_leaves_the_proof_of_nothing() -> None:
    engine = await engine_in(State.WEIGHTS_RESTORED)
    engine.adapter.script("load", REJECTED)
    with pytest.raises(OperationFailed):
        await engine.update_weights(V1, deadline_s=1)
    assert engine.state is State.WEIGHTS_RESTORED
    await engine.update_weights(V1)
