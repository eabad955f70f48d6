"""What one process has found out about an engine is loaded by the next one, from the file between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lifecycle import Engine, FromDisk, Grade, GuardRefused, Kept, NotProved, Proved, TagSpec
from lifecycle.rules.desired import was_loaded
from lifecycle.store.sqlite import Store
from lifecycle.testing import KV_CACHE, QUICK, ScriptedAdapter, capabilities

GIB = 1 << 30
KEPT = TagSpec("weights", "weights", "kept", 4 * GIB)


@pytest.fixture
def processes(tmp_path: Path) -> Callable[..., Any]:
    """One engine, and at each call another process that connects to it."""

    def begin(*tags: TagSpec, **how: Any) -> Callable[[], Any]:
        adapter = ScriptedAdapter("e", capabilities(*tags), **how)
        policy = replace(QUICK, canary_tokens=4)
        path = tmp_path / "known.db"
        return lambda: Engine(adapter, probe=adapter.probe, policy=policy, store=Store(path)).connect()

    return begin


async def drained(engine: Engine) -> Engine:
    await engine.pause()
    await engine.drain()
    return engine


async def test_what_a_tag_held_is_kept(processes: Any) -> None:
    connected = processes(KEPT, TagSpec("kv_cache", "kv", "discarded"), sizes={"kv_cache": 6 * GIB})
    first = await (await drained(await connected())).release(["kv_cache"])
    assert first.expected_bytes is None
    await (await connected()).restore_kv()
    second = await (await connected()).release(["kv_cache"])
    assert second.expected_bytes == 6 * GIB


async def test_kept_weights_are_compared_with_those_before_the_release(processes: Any) -> None:
    connected = processes(KEPT, KV_CACHE)
    engine = await drained(await connected())
    model = engine.adapter.engine
    model.checksums = {"target": "t0", "draft": "d0"}
    await engine.release(weights=Kept())
    await (await connected()).restore_weights()
    model.checksums["draft"] = "zeros"
    with pytest.raises(GuardRefused, match="the checksum of its draft is zeros, not d0"):
        await (await connected()).restore_kv()


async def test_the_canary_remembers_what_another_process_was_answered(processes: Any) -> None:
    connected = processes()
    engine = await connected()
    said = [Proved(grade=Grade.MEASURED, figures={"output_ids": ids}) for ids in ((1, 2), (8, 9))]
    engine.adapter.script("answers", *said)
    await drained(engine)
    with pytest.raises(NotProved, match=r"\[8, 9\], not \[1, 2\]"):
        await (await connected()).resume()


async def test_checksums_by_owner_are_kept_with_their_source(processes: Any) -> None:
    connected = processes()
    source = FromDisk("/m", "v2", checksum={"target": "t1"})
    engine = await connected()
    engine._session.commit(was_loaded(engine.record, source), save="must")
    assert (await connected()).desired.rollback_source == source
