"""What is known of an engine that externally modified on, and whose releases may free nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rig import V1, believing, engine_in, facts, serve_again, serving

from lifecycle import Engine, Facts, Grade, NotProved, State, Unreachable
from lifecycle.core.observation import Observation
from lifecycle.core.readings import Reading
from lifecycle.core.record import Record
from lifecycle.rules.knowledge import decided_by_bytes
from lifecycle.rules.knowledge.observed import moved_by_others
from lifecycle.store.sqlite import Store
from lifecycle.testing import DONE, KEPT_WEIGHTS, KV_CACHE, LOST, LOST_AFTER, QUICK

GIB = 1 << 30


async def released_by_somebody_else(frees: bool) -> Engine:
    """An engine that reports its released tags, and whose weights were released externally."""
    engine = await engine_in(State.DRAINED, KEPT_WEIGHTS, KV_CACHE)
    engine.adapter.reports_tags, engine.adapter.engine.frees = True, frees
    engine.adapter.engine.apply("release", {"tags": ["weights"]})
    assert await engine.verify() is State.RELEASED
    return engine


@pytest.mark.parametrize("frees", [True, False])
async def test_what_it_says_is_released_is_not_mapped_because_its_bytes_are_there(frees: bool) -> None:
    engine = await released_by_somebody_else(frees)
    engine.adapter.engine.apply("resume", {})
    with pytest.raises(Unreachable, match="admission is open"):
        await engine.restore_weights(deadline_s=1)
    assert engine.facts.mapped == {"weights": False, "kv_cache": True}
    assert engine.state is State.RELEASED, "it was closed again"
    assert engine.facts.contents == {"weights": None}, "whoever opened it may have loaded others"


@pytest.mark.parametrize("pause_first", [False, True], ids=["serving", "paused"])
async def test_requests_that_come_where_none_is_denied_are_no_contradiction(pause_first: bool) -> None:
    engine = await serving()
    if pause_first:
        await engine.pause()
    believing(engine, running=0)  # none ran when it was looked at
    engine.adapter.engine.running = 1
    engine.adapter.journal.clear()
    await engine.verify()
    assert engine.adapter.journal.kinds("barrier", "call") == [], "no claim was given up, and nothing settled"


async def test_requests_that_somebody_else_let_in_deny_that_it_is_idle() -> None:
    engine = await engine_in(State.DRAINED)
    model = engine.adapter.engine
    model.apply("resume", {})
    model.submit()
    model.stubborn = -1
    model.apply("pause", {"mode": "abort"})
    assert await engine.verify() is State.PAUSED
    assert engine.facts.running == 1
    assert engine.facts.contents == {"weights": None}, "whoever had it open may have loaded others"
    assert engine.facts.cache_fresh is None


async def test_weights_that_were_garbage_may_be_loaded_once_somebody_else_mapped_them() -> None:
    engine = await engine_in(State.RELEASED)
    engine.adapter.reports_tags = True
    model = engine.adapter.engine
    model.apply("restore", {"tags": sorted(model.unmapped)})
    model.apply("load", {"path": "/models/others", "version": model.label, "flush": True})
    assert await engine.verify() is State.DRAINED
    assert engine.facts.contents == {"weights": None}


async def test_who_mapped_the_kv_cache_may_have_loaded_the_weights() -> None:
    engine = await engine_in(State.WEIGHTS_RESTORED)
    engine.adapter.reports_tags = True
    model = engine.adapter.engine
    assert str(engine.facts.contents["weights"]) == "garbage"
    model.apply("restore", {"tags": ["kv_cache"]})
    model.apply("load", {"path": "/models/others", "version": model.label, "flush": True})
    assert await engine.verify() is State.DRAINED
    assert engine.facts.contents == {"weights": None}


async def test_a_tag_in_doubt_that_is_found_released_leaves_no_fresh_cache() -> None:
    engine = await engine_in(State.WEIGHTS_RESTORED)
    engine.adapter.reports_tags = True
    await engine.update_weights(V1)
    assert engine.facts.cache_fresh
    engine.adapter.script("restore", LOST_AFTER)
    engine.adapter.script("barrier", LOST)
    with pytest.raises(Unreachable):
        await engine.restore_kv(deadline_s=1)
    engine.adapter.engine.apply("release", {"tags": ["kv_cache"]})
    assert (await engine.recover()).state is State.WEIGHTS_RESTORED
    assert engine.facts.cache_fresh is None
    assert not engine.adapter.engine.cache_fresh


async def test_a_lost_call_is_not_decided_by_bytes_that_others_may_have_moved() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("release", LOST_AFTER)
    engine.adapter.script("barrier", LOST)
    with pytest.raises(Unreachable):
        await engine.release(weights=V1, deadline_s=1)
    assert engine.record.uncertain.call is not None
    seen = Observation(alive=True, boot=engine.facts.boot, admission="open")
    assert moved_by_others(engine.record, seen, engine.capabilities).uncertain.call is None


async def test_what_is_known_to_be_unmapped_stays_so_though_its_bytes_are_there() -> None:
    engine = await serving()
    known = facts(mapped={"weights": False, "kv_cache": None})

    def by_level(before: Facts, held: Reading) -> Facts:
        return decided_by_bytes(Record(facts=before), held, engine.capabilities, engine.policy).facts

    all_there, kv_gone = Reading({"gpu-0": 12 * GIB}, (), "t"), Reading({"gpu-0": 4 * GIB}, (), "t")
    assert by_level(known, all_there) is known
    assert by_level(known, kv_gone) is known
    known = by_level(facts(mapped={"weights": True, "kv_cache": None}), kv_gone)
    assert known.mapped == {"weights": True, "kv_cache": False}
    assert known.grades["mapped"] is Grade.MEASURED


async def test_who_opens_it_before_another_process_attaches_may_have_restored_it(tmp_path: Path) -> None:
    first = await engine_in(State.RELEASED)
    store, model = Store(tmp_path / "engines"), first.adapter.engine
    store.save(first.adapter.url, first.record)
    model.apply("restore", {"tags": ["weights", "kv_cache"]})
    model.apply("resume", {})
    again = Engine(first.adapter, policy=first.policy, probe=first.probe, store=Store(tmp_path / "engines"))
    await again.connect()
    assert again.state is State.FAILED
    assert (await again.recover()).state is State.PAUSED, "a restore of what is mapped would kill it"
    assert again.facts.contents == {"weights": None}
    assert again.facts.grades["mapped"] is Grade.MEASURED


async def test_who_opens_it_while_it_is_restored_may_have_restored_the_rest() -> None:
    engine = await engine_in(State.RELEASED, policy=replace(QUICK, evidence_max_age_s=0))

    def by_somebody_else(model: Any) -> None:
        model.apply("restore", {"tags": ["kv_cache"]})
        model.apply("resume", {})

    engine.adapter.script("restore", replace(DONE, then=by_somebody_else))
    with pytest.raises(NotProved, match="somebody opened it"):
        await engine.restore_weights(deadline_s=0.3)
    assert engine.facts.mapped == {"weights": True, "kv_cache": True}
    assert engine.state is State.PAUSED


async def test_a_process_in_its_place_that_is_closed_already_is_not_taken_to_be_as_launched() -> None:
    """Who paused it there may have released its memory: a release after that kills it."""
    engine = await engine_in(State.DRAINED)
    model = engine.adapter.engine
    model.restart()
    model.apply("pause", {"mode": "abort"})
    model.apply("release", {"tags": ["weights", "kv_cache"]})
    await engine.verify()
    assert engine.facts.mapped == {"weights": False, "kv_cache": False}, "told by its bytes"
    assert engine.state is State.RELEASED
    assert not engine.memory_is_free
    await serve_again(engine)
    assert model.violations == []


async def test_who_recovers_one_whose_memory_nobody_measured_finds_what_somebody_else_released() -> None:
    engine = await engine_in(State.DRAINED)  # all is mapped, as of every process that is met while it serves
    engine.adapter.engine.apply("release", {"tags": ["kv_cache"]})
    assert (await engine.recover()).state is State.WEIGHTS_RESTORED
    assert engine.facts.unmapped() == {"kv_cache"}
    await engine.release(weights=V1)
    assert engine.adapter.engine.deaths == [], "a tag that is released twice ends the process"


async def test_a_tag_that_went_with_the_one_that_was_named_is_not_taken_to_be_there() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("release", replace(DONE, then=lambda model: model.apply("release", {"tags": ["weights"]})))
    with pytest.raises(NotProved, match="more than what was named was released"):
        await engine.release(["kv_cache"], weights=V1, deadline_s=0.3)
    assert engine.state is State.RELEASED
    assert engine.facts.unmapped() == engine.adapter.engine.unmapped == {"weights", "kv_cache"}
    await serve_again(engine)
