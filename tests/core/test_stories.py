"""The lifecycle, written by hand: these judge the table, so nothing in them is derived from it."""

from __future__ import annotations

import pytest
from rig import V1, V2, engine_in, sent, serving

from lifecycle import (
    Contents,
    FromDisk,
    Grade,
    GuardRefused,
    InvalidTransition,
    Kept,
    NotProved,
    Proved,
    Refuted,
    State,
    TagSpec,
)
from lifecycle.testing import CUDA_GRAPH, KEPT_WEIGHTS, KV_CACHE, LOST, WEIGHTS

GIB = 1 << 30


async def test_the_rl_step_goes_once_round_the_ring() -> None:
    engine = await serving()
    model = engine.adapter.engine
    model.submit(3)
    path = [engine.state]
    for verb in (
        lambda: engine.pause(),
        lambda: engine.drain(),
        lambda: engine.release(weights=V1),
        lambda: engine.restore_weights(),
        lambda: engine.update_weights(V1),
        lambda: engine.restore_kv(),
        lambda: engine.resume(),
    ):
        record = await verb()
        path.append(record.dest)
        assert record.dest is engine.state
    assert [str(state) for state in path] == [
        "serving",
        "paused",
        "drained",
        "released",
        "weights_restored",
        "weights_restored",
        "kv_restored",
        "serving",
    ]
    assert sent(engine) == [
        "pause(abort)",
        "release(kv_cache)",
        "release(weights)",
        "restore(weights)",
        "load(/models/step-1,v1,True)",
        "restore(kv_cache)",
        "flush",
        "resume",
    ]
    assert model.alive
    assert model.violations == []
    assert model.contents == {"weights": Contents("loaded", "v1")}
    assert model.submit()


async def test_a_release_tells_what_came_back() -> None:
    engine = await engine_in(State.DRAINED)
    record = await engine.release(weights=V1)
    assert record.returned_bytes == record.expected_bytes == 12 * GIB
    assert isinstance(record.verdicts["memory_returned"], Proved)
    assert record.verdicts["memory_returned"].grade is Grade.MEASURED
    assert engine.memory_is_free
    assert "released" in repr(engine)
    assert "residual=0.50GiB" in repr(engine)


async def test_the_memory_is_not_free_once_it_is_restored() -> None:
    engine = await engine_in(State.RELEASED)
    assert engine.memory_is_free
    await engine.restore_weights()
    assert not engine.memory_is_free
    await engine.update_weights(V1)
    await engine.restore_kv()
    assert not engine.memory_is_free
    await engine.resume()
    assert not engine.memory_is_free


async def test_an_update_in_place_from_drained() -> None:
    engine = await engine_in(State.DRAINED)
    await engine.update_weights(V1)
    assert engine.state is State.DRAINED
    await engine.resume()
    assert engine.state is State.SERVING
    assert sent(engine) == ["load(/models/step-1,v1,True)", "resume"]
    assert engine.adapter.engine.violations == []


async def test_a_live_update_while_requests_are_frozen() -> None:
    engine = await serving()
    engine.adapter.engine.submit(2)
    await engine.pause("freeze")
    await engine.update_weights(V1)
    assert engine.state is State.PAUSED
    assert engine.adapter.engine.contents == {"weights": Contents("loaded", "v1")}
    await engine.resume()  # what was frozen goes on with the KV it has: that is what a live update is for
    assert engine.state is State.SERVING
    await engine.pause("keep")
    await engine.drain()
    assert engine.facts.cache_fresh is True


async def test_a_live_update_is_refused_while_paused_by_abort() -> None:
    engine = await engine_in(State.PAUSED)
    with pytest.raises(GuardRefused, match="would mix weights inside requests") as refused:
        await engine.update_weights(V1)
    assert list(refused.value.reasons) == ["live_update_supported"]
    assert sent(engine) == []


async def test_a_kv_only_cycle_walks_the_same_ring_and_sends_nothing_about_weights() -> None:
    engine = await engine_in(State.DRAINED)
    record = await engine.release(["kv_cache"])
    assert record.expected_bytes == 8 * GIB
    assert engine.memory_is_free
    await engine.restore_weights()
    assert engine.state is State.WEIGHTS_RESTORED
    await engine.restore_kv()
    await engine.resume()
    assert engine.state is State.SERVING
    assert sent(engine) == ["release(kv_cache)", "restore(kv_cache)", "flush", "resume"]
    assert engine.adapter.engine.contents == {"weights": Contents("launched", "v0")}


async def test_an_engine_without_a_kv_tag_walks_the_same_ring() -> None:
    engine = await engine_in(State.DRAINED, WEIGHTS)
    await engine.release(weights=V1)
    await engine.restore_weights()
    await engine.update_weights(V1)
    await engine.restore_kv()
    assert engine.state is State.KV_RESTORED
    await engine.resume()
    assert sent(engine) == ["release(weights)", "restore(weights)", "load(/models/step-1,v1,True)", "resume"]


async def test_three_tags_are_each_sent_once() -> None:
    engine = await engine_in(State.DRAINED, WEIGHTS, KV_CACHE, CUDA_GRAPH)
    await engine.release(weights=V1)
    await engine.restore_weights()
    await engine.update_weights(V1)
    await engine.restore_kv()
    await engine.resume()
    releases = [call for call in sent(engine) if call.startswith("release")]
    restores = [call for call in sent(engine) if call.startswith("restore")]
    assert releases == ["release(cuda_graph)", "release(kv_cache)", "release(weights)"]
    assert restores == ["restore(weights)", "restore(cuda_graph)", "restore(kv_cache)"]


async def test_the_rest_is_released_after_a_part() -> None:
    """Released tags are never sent again: releasing one twice kills the engine."""
    engine = await engine_in(State.DRAINED)
    await engine.release(["kv_cache"])
    await engine.restore_weights()
    await engine.release(weights=V1)
    assert sent(engine) == ["release(kv_cache)", "release(weights)"]
    assert engine.adapter.engine.alive
    assert engine.memory_is_free


async def test_kept_weights_need_no_update() -> None:
    engine = await engine_in(State.DRAINED, KEPT_WEIGHTS, KV_CACHE)
    await engine.release(weights=Kept())
    await engine.restore_weights()
    await engine.restore_kv()
    await engine.resume()
    assert not any(call.startswith("load") for call in sent(engine))
    assert engine.adapter.engine.contents == {"weights": Contents("kept", "v0")}
    assert engine.adapter.engine.violations == []


async def test_discarded_weights_are_refused_until_they_are_reloaded() -> None:
    engine = await engine_in(State.WEIGHTS_RESTORED)
    with pytest.raises(GuardRefused, match="came back unwritten") as refused:
        await engine.restore_kv()
    assert list(refused.value.reasons) == ["weights_valid"]
    assert engine.state is State.WEIGHTS_RESTORED
    assert sent(engine) == []


async def test_kept_weights_of_an_old_version_are_refused_where_a_new_one_was_declared() -> None:
    engine = await engine_in(State.DRAINED, KEPT_WEIGHTS, KV_CACHE)
    await engine.release(weights=V2)
    await engine.restore_weights()
    with pytest.raises(GuardRefused, match=r"kept\(v0\), and v2 is wanted"):
        await engine.restore_kv()
    await engine.update_weights(V2)
    await engine.restore_kv()
    assert engine.state is State.KV_RESTORED


async def test_the_same_version_twice_is_refused_unless_forced() -> None:
    engine = await engine_in(State.DRAINED)
    await engine.update_weights(V1)
    with pytest.raises(GuardRefused, match="loaded and valid already; force=True"):
        await engine.update_weights(FromDisk("/elsewhere", "v1"))
    assert len(sent(engine)) == 1
    await engine.update_weights(V1, force=True)
    assert len(sent(engine)) == 2


async def test_an_older_version_is_a_legal_rollback() -> None:
    engine = await engine_in(State.DRAINED)
    await engine.update_weights(V2)
    await engine.update_weights(V1)
    await engine.resume()
    assert engine.adapter.engine.contents == {"weights": Contents("loaded", "v1")}


async def test_a_recovered_engine_is_released_directly_and_ends_in_weights_restored() -> None:
    """Contract A: a direct caller may release one engine; it is proved idle first."""
    engine = await serving()
    engine.adapter.engine.restart()
    await engine.recover()
    assert engine.state is State.PAUSED
    engine.adapter.journal.clear()
    await engine.drain()
    await engine.release(weights=V1)
    await engine.restore_weights()
    await engine.update_weights(V1)
    assert engine.state is State.WEIGHTS_RESTORED
    happened = engine.adapter.journal.kinds("call", "idle")
    assert happened.index("e: idle -> proved") < happened.index("e: call release(kv_cache)")
    assert engine.adapter.engine.admission == "closed"


async def test_what_a_tag_held_is_learned_in_the_first_proved_cycle() -> None:
    unsized = TagSpec("kv_cache", "kv", "discarded")
    engine = await engine_in(State.DRAINED, KEPT_WEIGHTS, unsized, sizes={"kv_cache": 6 * GIB})
    first = await engine.release(["kv_cache"])
    assert (first.returned_bytes, first.expected_bytes) == (6 * GIB, None)
    await engine.restore_weights()
    await engine.restore_kv()
    second = await engine.release(["kv_cache"])
    assert (second.returned_bytes, second.expected_bytes) == (6 * GIB, 6 * GIB)


async def test_requests_that_are_kept_go_on_after_the_ring() -> None:
    engine = await serving("e", KEPT_WEIGHTS, KV_CACHE)
    model = engine.adapter.engine
    model.submit(4)
    await engine.pause("keep")
    await engine.drain()
    assert (model.running, model.parked) == (0, 4)
    await engine.release(weights=Kept())
    await engine.restore_weights()
    await engine.restore_kv()
    await engine.resume()
    assert (model.running, model.parked) == (4, 0)
    assert model.violations == []


async def test_a_freeze_never_drains_and_is_repaused_by_another_mode() -> None:
    engine = await serving()
    engine.adapter.engine.submit()
    await engine.pause("freeze")
    with pytest.raises(GuardRefused, match="'freeze' never drains"):
        await engine.drain()
    with pytest.raises(GuardRefused, match="hangs scripted for ever"):
        await engine.pause("abort")
    await engine.pause("keep")
    await engine.drain()
    assert engine.state is State.DRAINED


async def test_a_command_that_is_not_allowed_here_says_what_is() -> None:
    engine = await serving()
    before = engine.facts
    with pytest.raises(InvalidTransition, match="release refused in state serving: allowed here: pause") as refused:
        await engine.release(weights=V1)
    assert refused.value.allowed == ("pause",)
    assert (engine.state, engine.facts) == (State.SERVING, before)


async def test_a_drain_that_runs_out_of_time_settles_to_paused_and_can_be_tried_again() -> None:
    engine = await engine_in(State.PAUSED)
    engine.adapter.engine.stubborn = -1
    with pytest.raises(NotProved, match="It settled to paused") as failed:
        await engine.drain(deadline_s=0.2)
    assert failed.value.settled is engine.state is State.PAUSED
    assert isinstance(failed.value.verdicts["idle"], Refuted)
    assert "requests still run" in str(failed.value)
    engine.adapter.engine.stubborn = 0
    await engine.drain()
    assert engine.state is State.DRAINED


async def test_a_drain_that_ran_out_of_time_can_be_repaused_or_resumed() -> None:
    engine = await engine_in(State.PAUSED)
    engine.adapter.engine.stubborn = -1
    with pytest.raises(NotProved):
        await engine.drain(deadline_s=0.1)
    await engine.pause("abort")
    engine.adapter.engine.stubborn = 0
    await engine.resume()
    assert engine.state is State.SERVING
    assert engine.adapter.engine.submit()


async def test_a_drain_waits_until_the_last_request_has_ended() -> None:
    engine = await engine_in(State.PAUSED)
    engine.adapter.engine.stubborn = 5
    await engine.drain()
    idle = engine.adapter.journal.kinds("idle")
    assert idle == ["e: idle -> pending"] * 5 + ["e: idle -> proved"]


@pytest.mark.parametrize("how", ["keeps", "leaks"])
async def test_a_release_that_was_acknowledged_and_did_not_free(how: str) -> None:
    engine = await engine_in(State.DRAINED)
    model = engine.adapter.engine
    model.frees = how != "keeps"
    model.leak_bytes = 4 * GIB if how == "leaks" else 0
    with pytest.raises(NotProved, match="memory_returned") as failed:
        await engine.release(weights=V1, deadline_s=0.2)
    assert failed.value.settled is engine.state is State.RELEASED
    assert isinstance(engine.conditions["memory_returned"].verdict, Refuted)
    assert not engine.memory_is_free
    assert f"pid {model.pid}" in str(failed.value)
    assert "MiB" in str(failed.value)
    assert "its device is not free for others" in str(failed.value)
    figures = failed.value.verdicts["memory_returned"].figures
    assert figures["pids"] == (model.pid,)
    assert figures["expected_bytes"] == 12 * GIB
    model.frees = True
    await engine.restore_weights()
    await engine.update_weights(V1)
    await engine.restore_kv()
    await engine.resume()
    assert engine.state is State.SERVING
    assert (model.deaths, model.violations) == ([], [])


async def test_no_memory_saver_refuses_before_anything_is_sent() -> None:
    engine = await engine_in(State.DRAINED, caps={"memory_saver": False})
    with pytest.raises(GuardRefused, match="without its memory saver"):
        await engine.release(weights=V1)
    assert sent(engine) == []


async def test_kept_is_refused_where_the_engine_keeps_no_backup() -> None:
    engine = await engine_in(State.DRAINED)
    with pytest.raises(GuardRefused, match="keeps no backup of weights"):
        await engine.release(weights=Kept())
    with pytest.raises(GuardRefused, match="name a source"):
        await engine.release()
    assert sent(engine) == []


async def test_an_engine_of_which_it_is_not_known_whether_it_is_idle_is_not_released() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("prove_idle", LOST)
    with pytest.raises(GuardRefused, match="kills the engine") as refused:
        await engine.release(weights=V1)
    assert list(refused.value.reasons) == ["still_idle"]
    assert engine.facts.contents["weights"] is not None, "silence says nothing of its weights"
    assert engine.state is State.DRAINED
    assert engine.adapter.engine.alive
