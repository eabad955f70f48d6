"""What the engines of a move are to serve: kept for all before the first is touched, taken back where none was."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rig import V1, V2, states

from lifecycle import BaseObserver, Engine, Fleet, FleetError, GuardRefused, Pushed, State
from lifecycle.core.commands import Command, Release, Resume, UpdateWeights
from lifecycle.core.record import Record
from lifecycle.core.sources import PushTarget
from lifecycle.store.sqlite import Store, WriteConflict
from lifecycle.testing import QUICK, REJECTED, ScriptedAdapter

NAMES = ("a", "b", "c")


class Looks(BaseObserver):
    """Which versions the file says that the engines are to serve, when the first command of a kind begins."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.at: dict[type[Command], list[str | None]] = {}

    def command_started(self, engine: str, command: Command, state: State) -> None:
        self.at.setdefault(type(command), kept_in(self._path))


class Rows:
    """A store of somebody else, one row at a time. `full` is the engine that finds no room."""

    def __init__(self) -> None:
        self.rows: dict[str, Record] = {}
        self.full = ""

    def save(self, engine: str, record: Record) -> None:
        if engine == self.full:
            raise RuntimeError("no room")
        self.rows[engine] = record

    def load(self, engine: str) -> Record | None:
        return self.rows.get(engine)


def kept_in(path: Path) -> list[str | None]:
    """What the engines of this file are to serve."""
    store = Store(path)
    try:
        return [record.desired.version for record in store.known().values()]
    finally:
        store.close()


async def fleet_in(store: Any, *observers: BaseObserver, **policy: Any) -> Fleet:
    """Three engines that serve v1, and whose records are kept in this store."""
    policies = replace(QUICK, **policy)
    engines = [
        Engine(each, name=each.name, policy=policies, probe=each.probe, observers=observers, store=store, lease=None)
        for each in map(ScriptedAdapter, NAMES)
    ]
    fleet = Fleet(engines, policy=policies)
    await fleet.__aenter__()
    async with fleet.offloaded(weights=V1):
        pass
    return fleet


def desired(fleet: Fleet) -> list[str | None]:
    return [engine.desired.version for engine in fleet]


async def _drained(fleet: Fleet) -> None:
    await fleet.pause()
    await fleet.drain()


async def _offload(fleet: Fleet) -> None:
    await fleet.offload(weights=V2)


async def _release(fleet: Fleet) -> None:
    await _drained(fleet)
    await fleet.release(weights=V2)


async def _update(fleet: Fleet) -> None:
    await _drained(fleet)
    await fleet.update_weights(V2)


async def _onload(fleet: Fleet) -> None:
    await _drained(fleet)
    await fleet.onload(weights=V2)


MOVES = [(_offload, Release), (_release, Release), (_update, UpdateWeights), (_onload, UpdateWeights)]


@pytest.mark.parametrize(("move", "first"), MOVES)
async def test_all_of_a_fleet_are_to_serve_one_version_before_the_first_is_touched(
    move: Callable[[Fleet], Awaitable[None]], first: type[Command], tmp_path: Path
) -> None:
    """A driver that is killed here leaves no fleet of two versions."""
    path = tmp_path / "engines.sqlite3"
    looks = Looks(path)
    fleet = await fleet_in(Store(path), looks)
    looks.at.clear()
    await move(fleet)
    assert looks.at[first] == ["v2"] * 3


async def test_an_engine_that_was_released_before_is_to_serve_it_too(tmp_path: Path) -> None:
    path = tmp_path / "engines.sqlite3"
    looks = Looks(path)
    fleet = await fleet_in(Store(path), looks)
    await fleet.offload(weights=V1, engines=["b"])
    looks.at.clear()
    await fleet.offload(weights=V2)
    assert looks.at[Release] == ["v2"] * 3
    assert desired(fleet) == ["v2"] * 3


async def test_a_fleet_that_comes_back_is_to_serve_one_version_before_the_first_moves(tmp_path: Path) -> None:
    """The driver may be killed on the way back too."""
    path = tmp_path / "engines.sqlite3"
    looks = Looks(path)
    fleet = await fleet_in(Store(path), looks)
    looks.at.clear()
    fleet["b"].adapter.script("release", REJECTED)
    with pytest.raises(FleetError, match="b: release failed"):
        await fleet.offload(weights=V2)
    assert looks.at[Release] == ["v2"] * 3
    assert looks.at[Resume] == ["v1"] * 3
    assert desired(fleet) == ["v1"] * 3


async def test_it_is_taken_back_for_all_where_none_was_touched(tmp_path: Path) -> None:
    path = tmp_path / "engines.sqlite3"
    fleet = await fleet_in(Store(path), on_failure="hold")
    for engine in fleet:
        engine.adapter.script("release", REJECTED)
    with pytest.raises(FleetError, match="3 of 3 engines"):
        await fleet.offload(weights=V2)
    assert states(fleet) == dict.fromkeys(NAMES, "drained")
    assert desired(fleet) == kept_in(path) == ["v1"] * 3


async def test_it_stays_for_all_where_one_was_touched(tmp_path: Path) -> None:
    """One that was released comes back with the new weights, so the others do."""
    path = tmp_path / "engines.sqlite3"
    fleet = await fleet_in(Store(path), on_failure="hold")
    fleet["b"].adapter.script("release", REJECTED)
    with pytest.raises(FleetError, match="1 of 3 engines"):
        await fleet.offload(weights=V2)
    assert states(fleet) == {"a": "released", "b": "drained", "c": "released"}
    assert desired(fleet) == kept_in(path) == ["v2"] * 3
    await fleet.onload()
    assert [engine.adapter.engine.label for engine in fleet] == ["v2"] * 3


async def test_an_engine_to_which_an_update_was_not_sent_is_to_serve_what_it_serves() -> None:
    fleet = await fleet_in(Rows())
    await fleet.pause(engines=["a", "b"])
    await fleet.drain(engines=["a", "b"])
    with pytest.raises(FleetError, match="c: update_weights refused in state serving"):
        await fleet.update_weights(V2)
    assert desired(fleet) == ["v2", "v2", "v1"]
    assert await fleet["c"].verify() is State.SERVING


async def test_a_push_with_its_callback_takes_the_place_of_one_that_was_read_from_a_file() -> None:
    async def push(engines: Sequence[PushTarget]) -> None:
        for engine in engines:
            await engine.push("tensor")

    fleet = await fleet_in(Rows())
    pushed = Pushed(push, "v2")
    await fleet.offload(weights=pushed)
    Engine.set_desired_of([(engine, copy.copy(pushed)) for engine in fleet])
    await fleet.onload(weights=pushed)
    assert states(fleet) == dict.fromkeys(NAMES, "serving")
    assert [engine.adapter.engine.label for engine in fleet] == ["v2"] * 3


async def test_rows_of_one_file_are_written_all_or_none(tmp_path: Path) -> None:
    path = tmp_path / "engines.sqlite3"
    store = Store(path)
    fleet = await fleet_in(store)
    records = store.known()
    other = Store(path)
    last = list(records)[-1]
    other.load(last)
    other.save(last, records[last])  # the row is another process's from here on
    changed = {name: replace(each, desired=replace(each.desired, version="v9")) for name, each in records.items()}
    with pytest.raises(WriteConflict, match=f"another process moved {last}"):
        store.save_all(changed)
    assert kept_in(path) == ["v1"] * 3
    store.load(last)
    store.save_all(changed)
    assert kept_in(path) == ["v9"] * 3
    await fleet.aclose()


async def test_where_one_row_of_a_file_cannot_be_written_none_is_and_no_engine_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "engines.sqlite3"
    store = Store(path)
    fleet = await fleet_in(store)
    write = store._write

    def refuses(engine: str, record: Record) -> None:
        if record.desired.version == "v2" and engine == fleet["b"].adapter.url:
            raise RuntimeError("no room")
        write(engine, record)

    await _drained(fleet)
    monkeypatch.setattr(store, "_write", refuses)
    await _release_is_refused(fleet)
    assert kept_in(path) == ["v1"] * 3


async def test_where_a_row_of_another_store_cannot_be_written_those_before_it_are_what_they_were() -> None:
    store = Rows()
    fleet = await fleet_in(store)
    await _drained(fleet)
    store.full = fleet["b"].adapter.url
    await _release_is_refused(fleet)
    assert [record.desired.version for record in store.rows.values()] == ["v1"] * 3


async def _release_is_refused(fleet: Fleet) -> None:
    for engine in fleet:
        engine.adapter.journal.clear()
    with pytest.raises(FleetError, match="what is known could not be kept") as refused:
        await fleet.release(weights=V2)
    assert [type(each) for each in refused.value.exceptions] == [GuardRefused] * 3
    assert [engine.adapter.journal.calls() for engine in fleet] == [[]] * 3
    assert states(fleet) == dict.fromkeys(NAMES, "drained")
    assert desired(fleet) == ["v1"] * 3
