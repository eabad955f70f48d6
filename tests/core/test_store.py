"""What is kept of an engine, read by another process: all of it is believed, or none."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rig import V1, V2, engine_in, new_engine, serve_again

from lifecycle import (
    Engine,
    EngineBusy,
    EngineHeld,
    Fact,
    Fleet,
    Grade,
    GuardRefused,
    OperationFailed,
    Proved,
    Refuted,
    State,
)
from lifecycle.core.calls import Call, Reply
from lifecycle.core.encoding import encode
from lifecycle.core.facts import Facts
from lifecycle.core.json_text import JsonWriter
from lifecycle.core.readings import Reading
from lifecycle.core.record import Calibration, Desired, Record, Uncertain, UncertainCall
from lifecycle.core.verdicts import Condition
from lifecycle.store.codec import Rows, from_text, to_text
from lifecycle.store.sqlite import Store, WriteConflict
from lifecycle.testing import LIE


def kept_in(path: Path, beside: Engine | None = None) -> Engine:
    """An engine whose facts are kept in this file; `beside` another process's, over the same server."""
    server = beside or new_engine()
    return Engine(server.adapter, name="e", policy=server.policy, probe=server.probe, store=Store(path))


async def released(path: Path) -> Engine:
    engine = await kept_in(path).connect()
    await engine.pause()
    await engine.drain()
    await engine.release(weights=V1)
    return engine


async def test_that_its_memory_came_back_is_known_to_the_next_process(tmp_path: Path) -> None:
    first = await released(tmp_path / "engines")
    second = await kept_in(tmp_path / "engines", first).connect()
    assert second.state is State.RELEASED
    assert isinstance(second.conditions["memory_returned"].verdict, Proved)
    assert second.memory_is_free


async def test_that_its_memory_did_not_come_back_is_known_too(tmp_path: Path) -> None:
    first = await kept_in(tmp_path / "engines").connect()
    await first.pause()
    await first.drain()
    first.adapter.script("release", LIE)
    with pytest.raises(Exception, match="memory_returned"):
        await first.release(weights=V1, deadline_s=0.2)
    second = await kept_in(tmp_path / "engines", first).connect()
    assert second.state is first.state is State.RELEASED
    assert isinstance(second.conditions["memory_returned"].verdict, Refuted)
    assert not second.memory_is_free


async def test_of_an_engine_that_is_not_released_any_more_nothing_is_kept_of_the_release(tmp_path: Path) -> None:
    first = await released(tmp_path / "engines")
    second = await kept_in(tmp_path / "engines", first).connect()
    first.adapter.engine.restart()
    third = await kept_in(tmp_path / "engines", second).connect()
    assert third.state is State.SERVING
    assert "memory_returned" not in third.conditions


async def test_of_one_that_somebody_opened_since_nothing_is_kept_of_the_release(tmp_path: Path) -> None:
    first = await released(tmp_path / "engines")
    first.adapter.engine.apply("resume", {})
    second = await kept_in(tmp_path / "engines", first).connect()
    assert second.state is not State.RELEASED
    assert "memory_returned" not in second.conditions


@pytest.mark.parametrize("known", ["not json", "[]", '{"facts": 3}', '{"facts": {}, "state": "asleep"}'])
async def test_a_row_that_cannot_be_read_is_not_believed(
    tmp_path: Path, known: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = await released(tmp_path / "engines")
    with sqlite3.connect(tmp_path / "engines") as rows:
        rows.execute("UPDATE engines SET known = ?", (known,))
    rows.close()
    second = await kept_in(tmp_path / "engines", first).connect()
    assert "cannot be read" in caplog.text
    assert second.desired.rollback_source is second.desired.source is None
    assert "memory_returned" not in second.conditions


async def test_a_source_that_was_named_while_released_is_kept(tmp_path: Path) -> None:
    first = await released(tmp_path / "engines")
    await Fleet([first]).offload(weights=V2)
    second = await kept_in(tmp_path / "engines", first).connect()
    assert second.desired.source == V2


async def test_looking_does_not_overtake_a_command_of_another_process(tmp_path: Path) -> None:
    first = await kept_in(tmp_path / "engines").connect()
    await first.pause()
    await first.drain()
    lookers = []

    async def look() -> None:
        try:
            lookers.append(await kept_in(tmp_path / "engines", first).connect())
        except EngineHeld as held:  # a call that cannot be repeated is under way
            lookers.append(held)

    send = first.adapter.send

    async def send_while_looked_at(call: Call, *, deadline_s: float) -> Reply:
        await look()
        return await send(call, deadline_s=deadline_s)

    first.adapter.send = send_while_looked_at
    await first.release(weights=V1)
    await look()
    assert len(lookers) == 3
    assert all(isinstance(each, EngineHeld) for each in lookers[:2])
    assert lookers[-1].state is State.RELEASED
    assert lookers[-1].desired.source == V1
    assert lookers[-1].memory_is_free


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 1}, "it has format 1, and this version reads 3"),
        ({"format": 4}, "it has format 4, and this version reads 3"),
        ({"format": None}, "it has format 1, and this version reads 3"),  # 0.1.0.dev0 wrote no number
        ({"record": {"state": "asleep"}}, "it is damaged (Record.state: 'asleep' is none of"),
    ],
)
async def test_a_row_of_another_format_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = await released(tmp_path / "engines")
    row = {name: value for name, value in {**json.loads(to_text(first.record)), **change}.items() if value is not None}
    with sqlite3.connect(tmp_path / "engines") as rows:
        rows.execute("UPDATE engines SET known = ?", (json.dumps(row),))
    rows.close()
    store = Store(tmp_path / "engines")
    assert store.load(first.adapter.url) is None
    assert f"{first.adapter.url}: what was kept of it cannot be read: {says}" in caplog.text
    store.save(first.adapter.url, first.record)  # the row that was read may be written over
    assert store.load(first.adapter.url) == first.record


async def test_a_part_that_is_the_same_as_in_the_row_before_is_not_encoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = (await released(tmp_path / "engines")).record
    others = replace(known, state=State.FAILED, facts=known.facts.learn({Fact.RUNNING: 1}, Grade.REPORTED))
    in_doubt = replace(others, uncertain=Uncertain(call=UncertainCall({}, others.facts, known.facts)))
    encoded: list[type] = []
    find = JsonWriter._of_dataclass

    def counted(writer: JsonWriter, kind: type, *, typed: bool) -> Callable[[Any], str]:
        write = find(writer, kind, typed=typed)
        return lambda value: encoded.append(kind) or write(value)

    monkeypatch.setattr(JsonWriter, "_of_dataclass", counted)
    rows, seen = Rows(), []
    for record in (known, others, in_doubt, known):
        encoded.clear()
        text = rows.to_text("e", record)
        assert json.loads(text) == {"format": 3, "record": encode(record)}
        assert from_text(text) == record
        seen.append({kind for kind in encoded if kind in (Facts, Condition, Desired, Uncertain, Calibration, Reading)})
    parts = {Facts, Condition, Desired, Uncertain, Calibration}
    assert seen == [parts | {Reading}, {Facts}, {Uncertain, Facts}, {Uncertain}]
    assert json.loads(rows.to_text("another", others)) == {"format": 3, "record": encode(others)}


async def test_the_later_of_two_writers_is_refused(tmp_path: Path) -> None:
    first = await released(tmp_path / "engines")
    url, record = first.adapter.url, first.record
    unread, one, two = (Store(tmp_path / "engines") for _ in range(3))
    with pytest.raises(WriteConflict, match=f"another process moved {url}"):
        unread.save(url, record)
    assert one.load(url) == two.load(url) == record
    one.save(url, record)
    one.save(url, record)
    with pytest.raises(WriteConflict, match=f"another process moved {url}"):
        two.save(url, replace(record, state=State.FAILED))
    assert one.load(url) == record
    assert two.load(url) == record
    two.save(url, record)


async def test_only_what_was_observed_has_a_row(tmp_path: Path) -> None:
    store = Store(tmp_path / "engines")
    store.save("e", Record())
    assert store.load("e") is None
    store.save("e", Record(state=State.GONE))
    assert store.load("e") == Record(state=State.GONE)


async def test_attaching_writes_nothing_where_a_row_is_about_this_process(tmp_path: Path) -> None:
    first = await released(tmp_path / "engines")
    second = await kept_in(tmp_path / "engines", first).connect()
    await first.restore_weights()  # a row that was written meanwhile would refuse it
    assert first.state is State.WEIGHTS_RESTORED
    with pytest.raises(OperationFailed, match=r"weights holds .*: externally modified.* settled to weights_restored"):
        await second.restore_weights()  # what it remembers is not what is resident


async def test_attaching_to_a_process_in_the_place_of_another_keeps_what_is_known_of_it(tmp_path: Path) -> None:
    first = await kept_in(tmp_path / "engines").connect()
    await first.pause()
    first.adapter.engine.restart()
    second = await kept_in(tmp_path / "engines", first).connect()
    row = Store(tmp_path / "engines").load(first.adapter.url)
    assert row is not None
    assert row.facts.boot == second.facts.boot != first.facts.boot


async def test_a_record_of_other_tags_is_not_about_this_engine(tmp_path: Path) -> None:
    first = await released(tmp_path / "engines")
    facts = first.facts.learn({Fact.MAPPED: {"another": True}}, Grade.REPORTED)
    other = Store(tmp_path / "engines")
    other.load(first.adapter.url)
    other.save(first.adapter.url, replace(first.record, facts=facts))
    second = await kept_in(tmp_path / "engines", first).connect()
    assert set(second.facts.mapped) == {"weights", "kv_cache"}
    assert second.desired.source is None


async def test_connecting_again_helps_where_another_process_was_first(tmp_path: Path) -> None:
    first = await kept_in(tmp_path / "engines").connect()
    second = await kept_in(tmp_path / "engines", first).connect()
    await second.pause()
    await second.drain()
    await second.resume()
    with pytest.raises(GuardRefused, match="connect again"):
        await first.pause()
    await first.connect()
    assert first.state is State.SERVING
    await first.pause()


async def test_connecting_again_takes_over_what_another_process_has_released(tmp_path: Path) -> None:
    first = await kept_in(tmp_path / "engines").connect()
    second = await kept_in(tmp_path / "engines", first).connect()
    await second.pause()
    await second.drain()
    await second.release(weights=V1)
    await first.connect()
    assert first.state is State.RELEASED
    assert first.memory_is_free
    assert first.desired.source == V1
    await serve_again(first)


async def test_connecting_again_without_a_store_forgets_nothing() -> None:
    engine = await engine_in(State.RELEASED)
    await engine.connect()
    assert engine.state is State.RELEASED
    assert engine.memory_is_free
    await serve_again(engine)


async def test_connecting_again_to_another_process_believes_nothing_of_the_one_before() -> None:
    engine = await engine_in(State.RELEASED)
    engine.adapter.engine.restart()
    await engine.connect()
    assert engine.state is State.SERVING
    assert engine.desired == Desired()
    assert not engine.conditions


async def test_an_engine_that_has_a_command_is_not_connected_to_again() -> None:
    engine = await engine_in(State.PAUSED)
    refused: list[EngineBusy] = []
    send = engine.adapter.send

    async def send_while_connecting(call: Call, *, deadline_s: float) -> Reply:
        with pytest.raises(EngineBusy, match="update_weights is under way") as busy:
            await engine.connect()
        refused.append(busy.value)
        return await send(call, deadline_s=deadline_s)

    await engine.drain()
    engine.adapter.send = send_while_connecting
    await engine.update_weights(V1)
    assert refused
