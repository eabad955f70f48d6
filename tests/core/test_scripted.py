"""The scripted engine behaves as the real one does: what kills it, what it refuses, and what comes late."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from rig import serving

from lifecycle import Call, Engine, Reply, State
from lifecycle.testing import (
    DIE,
    HANG,
    HANG_AFTER,
    LATE,
    LIE,
    LOST,
    LOST_AFTER,
    REJECTED,
    REJECTED_AFTER,
    RESTART,
    RESTART_AFTER,
    Act,
)


async def do(engine: Engine, name: str, **args: Any) -> Reply:
    return await engine.adapter.send(Call(name, args), deadline_s=0.05)


KV = {"tags": ["kv_cache"]}
LOAD = {"path": "/m", "version": "1", "flush": True}


@pytest.mark.parametrize(
    ("calls", "running", "why"),
    [
        ([("release", KV)], 1, "released while requests ran"),
        ([("pause", {"mode": "freeze"}), ("release", KV)], 1, "released while requests ran"),
        ([("pause", {"mode": "abort"}), ("release", KV), ("release", KV)], 1, "kv_cache was released twice"),
        ([("pause", {"mode": "abort"}), ("release", {"tags": ["kv_cache", "kv_cache"]})], 0, "released twice"),
        ([("restore", KV)], 0, "kv_cache was restored, and was not released"),
        ([("release", KV), ("restore", KV), ("restore", KV)], 0, "was restored, and was not released"),
        (
            [("release", {"tags": ["weights"]}), ("load", LOAD)],
            0,
            "not mapped",
        ),
        (
            [("pause", {"mode": "keep"}), ("release", KV), ("resume", {})],
            1,
            "ran on memory that is not mapped",
        ),
    ],
)
async def test_what_kills_it(calls: list[tuple[str, dict[str, Any]]], running: int, why: str) -> None:
    engine = await serving()
    model = engine.adapter.engine
    model.submit(running)
    replies = [await do(engine, name, **args) for name, args in calls]
    assert not model.alive
    assert why in model.deaths[0]
    assert replies[-1].outcome == "lost"
    assert model.bytes_by_device() == {"gpu-0": 1 << 29}
    assert (await do(engine, "pause", mode="abort")).refused
    assert engine.adapter.journal.kinds("died") == [f"e: died -> {model.deaths[0]}"]


async def test_without_its_memory_saver_a_release_answers_and_frees_nothing() -> None:
    engine = await serving(caps={"memory_saver": False})
    before = engine.adapter.engine.bytes_by_device()
    assert (await do(engine, "release", tags=["kv_cache"])).outcome == "done"
    assert (await do(engine, "release", tags=["kv_cache"])).outcome == "done"
    assert engine.adapter.engine.bytes_by_device() == before
    assert engine.adapter.engine.alive


async def test_what_it_must_not_serve_is_kept_as_its_violations() -> None:
    engine = await serving()
    model = engine.adapter.engine
    for name, args in (("release", {"tags": ["weights"]}), ("restore", {"tags": ["weights"]})):
        await do(engine, name, **args)
    assert model.submit()
    assert model.violations == ["served garbage weights", "served from a stale cache"]


@pytest.mark.parametrize(
    ("act", "outcome", "closed"),
    [
        (Act(), "done", True),
        (LIE, "done", False),
        (REJECTED, "rejected", False),
        (REJECTED_AFTER, "rejected", True),
        (LOST, "lost", False),
        (LOST_AFTER, "lost", True),
        (LATE, "lost", False),
        (HANG, "lost", False),
        (HANG_AFTER, "lost", True),
        (DIE, "lost", False),
        (RESTART, "lost", False),
        (RESTART_AFTER, "done", False),
    ],
)
async def test_each_act_answers_and_takes_effect_as_it_says(act: Act, outcome: str, closed: bool) -> None:
    engine = await serving()
    engine.adapter.script("pause", act)
    reply = await do(engine, "pause", mode="abort")
    assert reply.outcome == outcome
    assert reply.late == (act.answer == "hang")
    assert (engine.adapter.engine.admission == "closed") is closed
    assert (await do(engine, "pause", mode="abort")).outcome == ("lost" if act is DIE else "done")


async def test_a_late_effect_comes_with_the_barrier_or_so_many_calls_later() -> None:
    engine = await serving()
    model = engine.adapter.engine
    engine.adapter.script("pause", LATE, Act("lost", "late", after_calls=2))
    await do(engine, "pause", mode="abort")
    assert await engine.adapter.barrier(deadline_s=1)
    assert model.admission == "closed"
    await do(engine, "resume")
    await do(engine, "pause", mode="abort")
    await do(engine, "flush")
    assert model.admission == "open"
    await do(engine, "flush")
    assert model.admission == "closed"
    assert len(engine.adapter.journal.kinds("effect")) == 2


async def test_a_cancelled_hang_raises_in_its_caller() -> None:
    engine = await serving()
    engine.adapter.script("pause", HANG)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await engine.adapter.send(Call("pause", {"mode": "abort"}), deadline_s=60)
    assert engine.adapter.journal.kinds("call", "reply") == ["e: call pause(abort)"]


async def test_a_restart_is_another_boot_that_holds_what_it_launched_with() -> None:
    engine = await serving()
    model = engine.adapter.engine
    await do(engine, "load", path="/m", version="v9", flush=True)
    boot, pid = model.boot, model.pid
    model.restart()
    assert (model.alive, model.admission, model.label) == (True, "open", "v0")
    assert boot != model.boot
    assert pid != model.pid
    assert await engine.verify() is State.DRAINED or engine.state is State.PAUSED
