"""What becomes of an engine when replies are lost, processes end, callers give up, and somebody else acts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rig import V1, V2, engine_in, new_engine, sent, serve_again, serving

from lifecycle import (
    Contents,
    Grade,
    GuardRefused,
    InvalidTransition,
    Kept,
    NotProved,
    OperationFailed,
    Rejected,
    State,
    TagSpec,
    Unmeasurable,
    Unreachable,
)
from lifecycle.testing import (
    DIE,
    DIE_AFTER,
    KEPT_WEIGHTS,
    KV_CACHE,
    LATE,
    LIE,
    LOST,
    LOST_AFTER,
    REJECTED,
    REJECTED_AFTER,
    RESTART,
    Act,
)

GIB = 1 << 30
DRAFT = TagSpec("draft_weights", "weights", "discarded", 4 * GIB)


# replies that are lost


@pytest.mark.parametrize("act", [LOST_AFTER, LATE])
async def test_a_release_whose_reply_is_lost_settles_by_what_is_resident(act: Act) -> None:
    engine = await engine_in(State.DRAINED, KV_CACHE, KEPT_WEIGHTS)
    engine.adapter.script("release", act, act)
    with pytest.raises(Unreachable, match=r"release.*got no answer: the connection broke") as failed:
        await engine.release(["kv_cache"], deadline_s=1)
    assert failed.value.settled is engine.state is State.WEIGHTS_RESTORED  # what a KV-only release has the facts of
    assert engine.facts.mapped == {"weights": True, "kv_cache": False}
    assert engine.facts.grades["mapped"] is Grade.MEASURED
    await serve_again(engine)


async def test_a_lost_release_of_the_last_tag_settles_to_released() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("release", Act(), LOST_AFTER)
    with pytest.raises(Unreachable):
        await engine.release(weights=V1, deadline_s=1)
    assert engine.state is State.RELEASED
    assert not engine.memory_is_free  # nobody proved it
    await serve_again(engine)


async def test_a_lost_release_that_never_happened_settles_to_drained() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("release", LOST)
    with pytest.raises(Unreachable):
        await engine.release(weights=V1, deadline_s=1)
    assert engine.state is State.DRAINED
    assert engine.facts.mapped == {"weights": True, "kv_cache": True}


async def test_a_lost_release_that_never_happened_leaves_the_weights_worth_serving() -> None:
    engine = await engine_in(State.DRAINED, KEPT_WEIGHTS, KV_CACHE)
    engine.adapter.script("release", LOST)
    with pytest.raises(Unreachable):
        await engine.release(["kv_cache"], deadline_s=1)
    assert engine.state is State.DRAINED
    await serve_again(engine)


async def test_half_a_release_is_known_as_half_a_release() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("release", Act(), LOST)
    with pytest.raises(Unreachable):
        await engine.release(weights=V1, deadline_s=1)
    assert engine.facts.mapped == {"weights": True, "kv_cache": False}
    assert engine.state is State.WEIGHTS_RESTORED
    assert sent(engine) == ["release(kv_cache)", "release(weights)"]
    await serve_again(engine)


async def test_half_a_release_keeps_the_weights_that_were_kept() -> None:
    engine = await engine_in(State.DRAINED, KEPT_WEIGHTS, KV_CACHE)
    engine.adapter.script("release", Act(), LOST)
    with pytest.raises(Unreachable):
        await engine.release(weights=Kept(), deadline_s=1)
    assert engine.facts.mapped == {"weights": True, "kv_cache": False}
    await engine.restore_kv()  # the weights never moved
    await engine.resume()


async def test_a_lost_release_of_kept_weights_still_knows_them_as_kept() -> None:
    engine = await engine_in(State.DRAINED, KEPT_WEIGHTS, KV_CACHE)
    engine.adapter.script("release", Act(), LOST_AFTER)
    with pytest.raises(Unreachable):
        await engine.release(weights=Kept(), deadline_s=1)
    assert engine.state is State.RELEASED
    await engine.restore_weights()
    await engine.restore_kv()
    await engine.resume()


async def test_a_release_that_was_not_sent_leaves_everything_as_it_was() -> None:
    engine = await engine_in(State.DRAINED, caps={"device": "cuda"})
    before = engine.facts
    engine.adapter.script("release", DIE)
    engine.adapter.engine.die("it was killed")
    engine.adapter.reports_processes = False
    with pytest.raises(Unreachable):
        await engine.release(weights=V1, deadline_s=0.2)
    assert engine.facts.mapped == before.mapped


async def test_a_rejected_release_settles_by_what_is_resident() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("release", REJECTED)
    with pytest.raises(Rejected, match="answered with 400: not now") as failed:
        await engine.release(weights=V1, deadline_s=1)
    assert (failed.value.status, failed.value.detail) == (400, "not now")
    assert engine.state is State.DRAINED


async def test_half_a_restore_does_not_leave_the_memory_free() -> None:
    engine = await engine_in(State.DRAINED, KV_CACHE, KEPT_WEIGHTS, DRAFT)
    await engine.release(weights=V1)
    assert engine.memory_is_free
    engine.adapter.script("restore", Act(), LOST)
    with pytest.raises(Unreachable):
        await engine.restore_weights(deadline_s=1)
    assert engine.adapter.engine.bytes_by_device()["gpu-0"] > 4 * GIB
    assert not engine.memory_is_free


async def test_a_lost_restore_is_not_sent_again() -> None:
    engine = await engine_in(State.RELEASED)
    engine.adapter.script("restore", LOST_AFTER)
    with pytest.raises(Unreachable):
        await engine.restore_weights(deadline_s=1)
    assert engine.state is State.WEIGHTS_RESTORED
    await serve_again(engine)
    assert sent(engine).count("restore(weights)") == 1


async def test_a_lost_pause_settles_to_what_the_engine_says() -> None:
    engine = await serving()
    engine.adapter.script("pause", LOST_AFTER, LOST)
    with pytest.raises(Unreachable):
        await engine.pause(deadline_s=1)
    assert engine.state is State.DRAINED  # it is closed, and its counts say that none runs
    await engine.resume()
    with pytest.raises(Unreachable):
        await engine.pause(deadline_s=1)
    assert engine.state is State.SERVING


async def test_a_rejected_load_leaves_the_engine_where_it_can_be_loaded_again() -> None:
    engine = await engine_in(State.WEIGHTS_RESTORED)
    engine.adapter.script("load", REJECTED_AFTER)
    with pytest.raises(Rejected):
        await engine.update_weights(V1, deadline_s=1)
    assert engine.state is State.WEIGHTS_RESTORED
    assert engine.facts.contents == {"weights": None}
    await serve_again(engine)


async def test_a_source_that_failed_is_not_the_last_good_one() -> None:
    engine = await engine_in(State.DRAINED)
    await engine.update_weights(V1)
    engine.adapter.script("load", REJECTED)
    with pytest.raises(Rejected):
        await engine.update_weights(V2, deadline_s=1)
    assert engine.desired.rollback_source == V1


# processes that end, restart, or do not answer


@pytest.mark.parametrize("step", ["pause", "release", "restore_weights", "update_weights", "restore_kv", "resume"])
@pytest.mark.parametrize("act", [DIE, DIE_AFTER])
async def test_an_engine_that_dies_in_any_step_is_gone(step: str, act: Act) -> None:
    before = {
        "pause": State.SERVING,
        "release": State.DRAINED,
        "restore_weights": State.RELEASED,
        "update_weights": State.WEIGHTS_RESTORED,
        "restore_kv": State.KV_RESTORED,
        "resume": State.KV_RESTORED,
    }[step]
    engine = await engine_in(before if step != "restore_kv" else State.WEIGHTS_RESTORED)
    if step == "restore_kv":
        await engine.update_weights(V1)
    call = {"update_weights": "load", "restore_weights": "restore", "restore_kv": "restore"}.get(step, step)
    engine.adapter.script(call, act)
    with pytest.raises(OperationFailed, match="It settled to gone") as failed:
        await {
            "pause": lambda: engine.pause(deadline_s=1),
            "release": lambda: engine.release(weights=V1, deadline_s=1),
            "restore_weights": lambda: engine.restore_weights(deadline_s=1),
            "update_weights": lambda: engine.update_weights(V1, deadline_s=1),
            "restore_kv": lambda: engine.restore_kv(deadline_s=1),
            "resume": lambda: engine.resume(deadline_s=1),
        }[step]()
    assert failed.value.settled is engine.state is State.GONE
    assert engine.memory_is_free


async def test_an_engine_that_died_before_is_gone_and_nothing_was_sent() -> None:
    engine = await engine_in(State.PAUSED)
    engine.adapter.engine.die("it was killed")
    with pytest.raises(Unreachable, match=r"its process is gone \(pid \d+ has ended\)"):
        await engine.drain(deadline_s=1)
    assert engine.state is State.GONE
    assert sent(engine) == []


async def test_a_gone_engine_that_was_started_again_is_a_fresh_one() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.engine.die("it was killed")
    assert await engine.verify() is State.GONE
    engine.adapter.engine.restart()
    assert (await engine.recover()).state is State.PAUSED
    assert engine.facts.boot == engine.adapter.engine.boot
    with pytest.raises(GuardRefused, match="restarted process"):
        await engine.resume()
    await serve_again(engine)


async def test_an_engine_that_does_not_answer_is_failed_and_recovers() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.engine.reachable = False
    with pytest.raises(Unreachable, match="It settled to failed") as failed:
        await engine.release(weights=V1, deadline_s=0.2)
    assert engine.state is State.FAILED
    assert "Next: `fleet.recover()`" in str(failed.value)
    assert sent(engine) == []
    assert (await engine.recover(deadline_s=0.2)).state is State.FAILED
    engine.adapter.engine.reachable = True
    assert (await engine.recover()).state is State.DRAINED
    await serve_again(engine)


async def test_a_restart_behind_our_back_is_noticed_before_anything_is_sent() -> None:
    engine = await engine_in(State.RELEASED)
    engine.adapter.engine.restart()
    with pytest.raises(Unreachable, match="another process now") as failed:
        await engine.restore_weights(deadline_s=1)
    assert failed.value.settled is engine.state is State.PAUSED
    assert sent(engine) == ["pause(abort)"]  # it came up admitting requests with weights nobody asked for
    assert not engine.memory_is_free
    with pytest.raises(GuardRefused, match="restarted process launched with"):
        await engine.resume()
    await serve_again(engine)


async def test_a_restart_of_a_serving_engine_is_closed_by_verify() -> None:
    engine = await serving()
    engine.adapter.engine.restart()
    assert await engine.verify() is State.PAUSED
    assert engine.facts.contents == {"weights": Contents("launched", "v0")}
    assert engine.adapter.engine.admission == "closed"


@pytest.mark.parametrize("step", ["restore", "load"])
async def test_a_restart_during_a_command_voids_what_was_known(step: str) -> None:
    engine = await engine_in(State.RELEASED)
    engine.adapter.script(step, RESTART)
    if step == "load":
        await engine.restore_weights(deadline_s=1)
    with pytest.raises(OperationFailed) as failed:
        await (engine.update_weights(V1, deadline_s=1) if step == "load" else engine.restore_weights(deadline_s=1))
    assert failed.value.settled is State.PAUSED
    assert engine.facts.boot == engine.adapter.engine.boot
    await serve_again(engine)


async def test_somebody_else_who_resumes_contradicts_the_claim() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.engine.admission = "open"
    with pytest.raises(OperationFailed, match="admission is open, and was left closed: externally modified"):
        await engine.release(weights=V1, deadline_s=1)
    assert engine.state is State.PAUSED, "it was closed: whoever opened it may have loaded other weights"
    assert engine.facts.contents == {"weights": None}
    assert sent(engine) == ["pause(abort)"]
    await serve_again(engine)


async def test_somebody_else_who_releases_contradicts_the_claim() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.reports_tags = True
    engine.adapter.engine.apply("release", {"tags": ["kv_cache"]})
    assert await engine.verify() is State.WEIGHTS_RESTORED
    assert engine.facts.mapped == {"weights": True, "kv_cache": False}


async def test_an_engine_met_while_it_is_paused_is_not_claimed_to_be_anything() -> None:
    """The resident bytes decide nothing here: 40 MiB of tags under a threshold of 3 GiB."""
    small = (replace(KEPT_WEIGHTS, expected_bytes=20 << 20), replace(KV_CACHE, expected_bytes=20 << 20))
    engine = new_engine("e", *small)
    engine.adapter.engine.admission = "closed"
    await engine.connect()
    assert engine.state is State.FAILED
    why = r"it is failed: drained or released or weights_restored: .* is mapped is not known"
    with pytest.raises(InvalidTransition, match=rf"allowed here \({why}.*\)\. Next: `fleet\.recover\(\)`"):
        await engine.resume()


async def test_what_is_known_too_little_of_is_not_called_proved_in_the_error() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.probe.always = Unmeasurable(reason="no driver here")
    with pytest.raises(NotProved, match=r"tags_unmapped is unmeasurable: .*only acknowledged, and reported is"):
        await engine.release(weights=V1, deadline_s=0.3)


async def test_what_could_not_be_proved_to_come_back_is_not_released() -> None:
    tiny = (replace(KEPT_WEIGHTS, expected_bytes=20 << 20), replace(KV_CACHE, expected_bytes=20 << 20))
    engine = await engine_in(State.DRAINED, *tiny, sizes={"weights": 20 << 20, "kv_cache": 20 << 20})
    with pytest.raises(GuardRefused, match="kv_cache, weights hold 40 MiB, too little to see: less than 64 MiB"):
        await engine.release()
    assert (engine.state, sent(engine)) == (State.DRAINED, [])


# what is opened without being worth it is closed again


async def test_recover_closes_an_engine_that_admits_requests_on_unmapped_memory() -> None:
    engine = await engine_in(State.RELEASED)
    engine.adapter.engine.admission = "open"
    assert (await engine.recover()).state is State.RELEASED
    assert engine.adapter.engine.admission == "closed"
    assert sent(engine) == ["pause(abort)"]


async def test_a_lost_resume_is_closed_again_where_it_does_not_answer() -> None:
    engine = await engine_in(State.KV_RESTORED)
    engine.adapter.script("resume", LOST_AFTER)
    with pytest.raises(Unreachable):
        await engine.resume(deadline_s=1)
    assert engine.state is State.PAUSED
    assert engine.adapter.engine.admission == "closed"


async def test_what_could_not_be_closed_after_a_resume_without_a_token_is_not_taken_to_serve() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.reports_admission = False
    engine.adapter.script("resume", LIE)
    engine.adapter.script("observe", Act(), LOST)  # before the call, and when it is to generate a token
    engine.adapter.script("pause", REJECTED)
    with pytest.raises(Unreachable, match="stopped answering"):
        await engine.resume(deadline_s=1)
    assert engine.state is State.FAILED
    assert engine.adapter.engine.admission == "closed", "the resume was answered, and did nothing"
    assert (await engine.recover()).state is not State.SERVING
    await serve_again(engine)
