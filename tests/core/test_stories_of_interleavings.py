"""Stories that the explorer (tests/model_check) found: what one answer showed, another had shown differently before."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from rig import V1, engine_in, put, sent, serve_again

from lifecycle import Engine, GuardRefused, OperationFailed, State
from lifecycle.core.facts import Fact, Grade
from lifecycle.core.readings import Reading
from lifecycle.core.record import Record
from lifecycle.core.units import GIB
from lifecycle.core.verdicts import Refuted, Unmeasurable
from lifecycle.testing import HANG_LATE, KV_CACHE, LIE, LOST_AFTER, QUICK, WEIGHTS, Act, ScriptedAdapter
from lifecycle.testing.model import ScriptedEngine

ACCEPTING = replace(QUICK, accept={**QUICK.accept, "mapping_borne_out": Grade.ASSERTED})


class Rows:
    """A store in memory, as it was when its driver was killed."""

    def __init__(self) -> None:
        self.rows: dict[str, Record] = {}
        self.killed = False

    def save(self, engine: str, record: Record) -> None:
        if not self.killed:
            self.rows[engine] = record

    def load(self, engine: str) -> Record | None:
        return self.rows.get(engine)


def driver(adapter: ScriptedAdapter, rows: Rows) -> Engine:
    return Engine(adapter, name="e", policy=QUICK, probe=adapter.probe, lease=None, store=rows)


@pytest.mark.virtual_time
async def test_what_was_seen_before_the_barrier_does_not_count_when_attaching() -> None:
    """A driver was killed in a resume. Its call takes effect at the barrier of the next driver, which had looked."""
    adapter, rows = ScriptedAdapter("e"), Rows()
    engine = await driver(adapter, rows).connect()
    await engine.pause()
    await engine.drain()
    adapter.script("resume", HANG_LATE)
    resuming = asyncio.create_task(engine.resume())
    for _ in range(100):
        await asyncio.sleep(0)
    assert any(line.startswith("resume") for line in sent(engine))
    rows.killed = True
    another = await driver(adapter, rows).connect()
    resuming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await resuming
    assert adapter.engine.admission == "open"
    assert another.facts.admission == "open"
    assert another.state is State.SERVING


def closes_and_releases(model: ScriptedEngine) -> None:
    model.apply("pause", {"mode": "abort"})
    model.apply("release", {"tags": ["kv_cache", "weights"]})


async def test_who_closed_an_engine_between_its_resume_and_its_answer_may_have_released_it() -> None:
    engine = await engine_in(State.KV_RESTORED)
    engine.adapter.script("answers", Act(then=closes_and_releases))
    with pytest.raises(OperationFailed):
        await engine.resume()
    assert engine.state is State.RELEASED
    assert engine.facts.contents == {"weights": None}
    assert not engine.memory_is_free


@pytest.mark.virtual_time
async def test_a_release_ends_where_a_look_between_its_calls_finds_another_process() -> None:
    """The memory of the old process cannot be read any more, and the look that asks why names another boot."""
    engine = await engine_in(State.DRAINED)
    adapter: Any = engine.adapter

    def is_started_again(model: ScriptedEngine) -> None:
        model.restart()
        model.submit()
        adapter.probe.script(Unmeasurable(reason="no process of the engine is left to measure"))

    adapter.script("release", Act(then=is_started_again))
    with pytest.raises(OperationFailed, match="another process"):
        await engine.release(weights=V1)
    assert [call for call in sent(engine) if call.startswith("release")] == ["release(kv_cache)"]
    assert adapter.engine.alive


# bytes that somebody else moved


def restores(*tags: str) -> Any:
    return lambda model: model.apply("restore", {"tags": list(tags)})


@pytest.mark.parametrize("tag", ["weights", "kv_cache"])
async def test_a_tag_that_somebody_restored_after_the_release_is_not_restored_again(tag: str) -> None:
    """It would end an engine like SGLang. The reading before the call shows that its bytes are back."""
    engine = await engine_in(State.RELEASED)
    restores(tag)(engine.adapter.engine)
    engine.adapter.journal.clear()
    with pytest.raises(OperationFailed, match=f"{tag} holds .*externally modified"):
        await engine.restore_weights()
    assert not any(line.startswith("restore") for line in sent(engine))
    assert engine.state is (State.WEIGHTS_RESTORED if tag == "weights" else State.RELEASED)
    assert not engine.memory_is_free
    assert engine.facts.mapped == {"weights": tag == "weights", "kv_cache": tag == "kv_cache"}


async def test_a_kv_cache_that_somebody_restored_after_the_weights_is_not_restored_again() -> None:
    engine = await engine_in(State.WEIGHTS_RESTORED)
    await engine.update_weights(V1)
    restores("kv_cache")(engine.adapter.engine)
    engine.adapter.journal.clear()
    with pytest.raises(OperationFailed, match=r"kv_cache holds .*externally modified"):
        await engine.restore_kv()
    assert not any(line.startswith("restore") for line in sent(engine))
    assert engine.facts.mapped == {"weights": True, "kv_cache": True}
    assert engine.adapter.engine.deaths == []


@pytest.mark.parametrize("looks", [False, True])
async def test_of_an_engine_that_says_which_tags_are_released_growth_is_no_tag(looks: bool) -> None:
    """A trainer in its process may hold as much as a tag does."""
    engine = await engine_in(State.RELEASED)
    engine.adapter.reports_tags = True
    engine.adapter.engine.leaked_bytes = 4 * GIB
    if looks:
        assert await engine.verify() is State.RELEASED
        assert isinstance(engine.conditions["memory_returned"].verdict, Refuted)
    await engine.restore_weights()
    assert engine.state is State.WEIGHTS_RESTORED


@pytest.mark.parametrize("mapped", [{"kv_cache"}, {"kv_cache", "weights"}], ids=len)
async def test_a_release_that_somebody_undid_before_its_end_is_not_released(mapped: set[str]) -> None:
    """The bytes of its first tag were seen to go, and are back: nothing of ours restores in a release."""
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("release", Act(), Act(then=restores(*mapped)))
    with pytest.raises(OperationFailed, match="are still held"):
        await engine.release(weights=V1, deadline_s=0.5)
    assert engine.facts.mapped == {tag: tag in mapped for tag in ("weights", "kv_cache")}
    assert engine.state is (State.DRAINED if len(mapped) == 2 else State.RELEASED)
    assert not engine.memory_is_free


async def test_weights_that_somebody_released_before_the_kv_cache_was_proved_do_not_count_as_mapped() -> None:
    engine = await engine_in(State.WEIGHTS_RESTORED)
    await engine.update_weights(V1)
    released = Act(then=lambda model: model.apply("release", {"tags": ["kv_cache", "weights"]}))
    engine.adapter.script("restore", released)
    with pytest.raises(OperationFailed, match="settled to released"):
        await engine.restore_kv(deadline_s=0.5)
    assert engine.facts.mapped == {"weights": False, "kv_cache": False}


@pytest.mark.parametrize("resident_gib", [1, 11])
async def test_an_engine_that_holds_less_than_its_tags_are_said_to_serves_and_is_not_released(
    resident_gib: int,
) -> None:
    """A size may be wrong: nothing went since it was met, so that nobody has released it."""
    adapter = ScriptedAdapter("e")
    adapter.probe.always = Reading({"gpu-0": resident_gib * GIB // 2}, (), "a test")
    engine = await driver(adapter, Rows()).connect()
    assert engine.state is State.SERVING
    await engine.pause()
    await engine.drain()
    with pytest.raises(GuardRefused, match="mapping_borne_out"):
        await engine.release(weights=V1)
    assert engine.state is State.DRAINED


async def test_attaching_to_an_engine_that_says_which_tags_are_released_asks_no_bytes_about_them() -> None:
    """Of its memory less may be resident than it has: pages that nobody has written yet."""
    adapter, rows = ScriptedAdapter("e"), Rows()
    adapter.reports_tags = True
    engine = await driver(adapter, rows).connect()
    await engine.pause()
    adapter.probe.always = Reading({"gpu-0": GIB // 2}, (), "a test")
    assert (await driver(adapter, rows).connect()).state is State.DRAINED


async def test_who_accepts_what_is_asserted_of_the_mapping_is_not_told_that_bytes_deny_it() -> None:
    engine = await engine_in(State.DRAINED, policy=ACCEPTING)
    engine.adapter.probe.always = Reading({"gpu-0": GIB // 2}, (), "a test")
    await engine.update_weights(V1)
    assert engine.state is State.DRAINED


async def test_a_release_whose_second_call_frees_nothing_was_not_undone_by_anybody() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("release", Act(), LIE)
    with pytest.raises(OperationFailed, match="what is missing is the size of weights"):
        await engine.release(weights=V1, deadline_s=0.5)
    assert engine.state is State.RELEASED
    assert engine.facts.mapped == {"weights": False, "kv_cache": False}


async def test_an_engine_that_somebody_released_before_its_first_reading_does_not_serve() -> None:
    adapter = ScriptedAdapter("e")
    read = adapter.probe.read

    async def late(processes: Any, *, deadline_s: float) -> Any:
        if adapter.engine.admission == "open":
            closes_and_releases(adapter.engine)
        return await read(processes, deadline_s=deadline_s)

    adapter.probe.read = late  # type: ignore[method-assign]
    engine = await driver(adapter, Rows()).connect()
    assert engine.state is not State.SERVING
    assert engine.facts.mapped != {"weights": True, "kv_cache": True}


ALIKE = replace(KV_CACHE, expected_bytes=WEIGHTS.expected_bytes)
UNREAD = Unmeasurable(reason="a test")


async def lost(engine: Engine, call: str, command: Any) -> None:
    """A call took effect and was not answered, and what was resident before it could not be read."""
    engine.adapter.script(call, LOST_AFTER)
    engine.adapter.probe.always = UNREAD
    with pytest.raises(OperationFailed):
        await command
    engine.adapter.probe.always = None
    await engine.recover()


@pytest.mark.virtual_time
@pytest.mark.parametrize("measured", [True, False])
async def test_of_tags_of_one_size_a_call_without_an_answer_restored_the_one_that_is_not_known(measured: bool) -> None:
    """The other was measured to go. Where it is only remembered to be released, it may be that which is back."""
    engine = await engine_in(State.RELEASED, WEIGHTS, ALIKE, policy=ACCEPTING)
    if not measured:
        put(engine, facts=engine.facts.learn({Fact.MAPPED: {}}, Grade.ASSERTED, cause="remembered"))
    await lost(engine, "restore", engine.restore_weights(deadline_s=1.0))
    assert engine.facts.mapped == {"weights": True if measured else None, "kv_cache": False}
    assert engine.state is (State.WEIGHTS_RESTORED if measured else State.FAILED)


@pytest.mark.virtual_time
async def test_of_tags_of_one_size_a_call_without_an_answer_released_the_one_that_is_not_known() -> None:
    engine = await engine_in(State.DRAINED, WEIGHTS, ALIKE, policy=ACCEPTING)
    await lost(engine, "release", engine.release(["kv_cache"], deadline_s=1.0))
    assert engine.facts.mapped == {"weights": True, "kv_cache": False}


@pytest.mark.parametrize("cycled", [False, True], ids=["at once", "after a cycle"])
async def test_a_tag_that_a_release_did_not_give_back_was_restored_by_nobody(cycled: bool) -> None:
    """Its bytes are there, as after that release, whatever an earlier one gave back."""
    engine = await engine_in(State.RELEASED if cycled else State.DRAINED)
    if cycled:
        await serve_again(engine)
        await engine.pause()
        await engine.drain()
    engine.adapter.engine.frees = False
    engine.adapter.script("release", Act(then=lambda model: setattr(model, "frees", True)))
    with pytest.raises(OperationFailed, match="what is missing is the size of kv_cache"):
        await engine.release(weights=V1, deadline_s=0.5)
    assert engine.state is State.RELEASED
    await serve_again(engine)


async def test_a_release_that_was_given_up_is_not_judged_by_the_one_before() -> None:
    """The threshold is larger than all that it holds: by the level alone everything came back."""
    engine = await engine_in(State.WEIGHTS_RESTORED, policy=replace(QUICK, residual_threshold_gib=64.0))
    engine.adapter.engine.frees = False
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await engine.release(weights=V1, deadline_s=5.0)
    await engine.recover()
    assert await engine.verify() is State.RELEASED
    assert not engine.memory_is_free


async def test_what_an_engine_grew_by_beside_its_tags_is_none_of_them() -> None:
    engine = await engine_in(State.WEIGHTS_RESTORED)
    await engine.update_weights(V1)
    engine.adapter.engine.leaked_bytes = 12 * GIB
    await engine.restore_kv()
    assert engine.state is State.KV_RESTORED


async def test_growth_by_as_much_as_all_tags_hides_which_are_mapped() -> None:
    engine = await engine_in(State.RELEASED)
    engine.adapter.engine.leaked_bytes = 36 * GIB
    await engine.verify()
    assert engine.state is State.FAILED, "it may be released, and may be drained"
    assert engine.facts.mapped == {"weights": None, "kv_cache": None}
