"""What a review found: each of these was wrong once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from rig import V1, V2, engine_in, fleet_of, new_engine, serving

from lifecycle import (
    ConfigurationError,
    Engine,
    FleetError,
    GuardRefused,
    OperationFailed,
    Policy,
    Pushed,
    State,
    TagSpec,
)
from lifecycle.core.record import Record
from lifecycle.store.sqlite import Store
from lifecycle.testing.acts import HANG_LATE, REJECTED

MIB = 1 << 20


async def test_a_release_that_was_refuted_does_not_open_a_window_the_second_time() -> None:
    fleet, _ = await fleet_of("a", "b")
    fleet["b"].adapter.engine.leak_bytes = 1 << 40
    with pytest.raises(FleetError):
        await fleet.offload(weights=V1, deadline_s=0.2)
    assert fleet["b"].state is State.RELEASED
    with pytest.raises(FleetError, match="bring it back first"):
        await fleet.offload(weights=V1, deadline_s=0.2)
    assert fleet["a"].state is State.SERVING, "the other engine still serves"


async def test_a_release_of_kv_is_no_release_of_all() -> None:
    fleet, _ = await fleet_of("a")
    await fleet.offload(["kv_cache"])
    with pytest.raises(FleetError, match="weights are not among what was given back"):
        await fleet.offload(weights=V1)


async def test_a_failed_offload_does_not_ask_the_trainer_for_weights_it_has_not_made() -> None:
    pushed: list[str] = []

    async def push(engines: Sequence[Engine]) -> None:
        pushed.append("too early")

    fleet, _ = await fleet_of("a", "b")
    fleet["b"].adapter.script("release", REJECTED)
    with pytest.raises(FleetError):
        await fleet.offload(weights=Pushed(push, "v2"))
    assert pushed == []
    assert fleet["b"].state is State.SERVING, "its weights were never touched"
    assert fleet["b"].facts.contents["weights"].version == "v0"


async def test_a_step_that_fails_goes_back_to_the_last_good_weights() -> None:
    fleet, _ = await fleet_of("a", "b")
    async with fleet.offloaded(weights=V1):
        pass
    with pytest.raises(ZeroDivisionError):
        async with fleet.offloaded(weights=V2):
            _ = 1 / 0
    assert {engine.state for engine in fleet} == {State.SERVING}
    assert {engine.facts.contents["weights"].version for engine in fleet} == {"v1"}


async def test_memory_is_not_believed_free_after_a_stranger_opened_the_engine() -> None:
    engine = await engine_in(State.RELEASED)
    assert engine.memory_is_free
    model = engine.adapter.engine
    for tag in ("weights", "kv_cache"):
        model.apply("restore", {"tags": [tag]})
    model.apply("resume", {})
    await engine.verify()
    assert not engine.memory_is_free
    assert engine.facts.unmapped() == frozenset()
    assert engine.weights_refusal() is not None


async def test_a_router_is_not_closed_for_a_pause_that_is_refused() -> None:
    fleet, _ = await fleet_of("a", router=True)
    with pytest.raises(FleetError, match="no pause mode"):
        await fleet.pause("bogus")
    assert fleet.router.closed == set()


async def test_a_monitor_may_look_during_a_move() -> None:
    fleet, _ = await fleet_of("a", "b")

    async def monitor() -> None:
        while True:
            await fleet["a"].verify()
            await asyncio.sleep(0)

    watching = asyncio.create_task(monitor())
    async with fleet.offloaded(weights=V1):
        pass
    watching.cancel()
    assert {engine.state for engine in fleet} == {State.SERVING}


def remembering(path: Path, *, beside: Engine | None = None) -> Engine:
    """An engine whose facts are kept in a file; `beside` another process's engine over the same server."""
    if beside is None:
        engine = new_engine()
        engine._session.store = Store(path)
        return engine
    return Engine(beside.adapter, name="e", policy=beside.policy, probe=beside.probe, store=Store(path))


async def test_a_lost_call_is_in_doubt_for_the_next_process_too(tmp_path: Path) -> None:
    first = await remembering(tmp_path / "engines").connect()
    await first.pause()
    await first.drain()
    first.adapter.script("release", HANG_LATE)
    first.adapter.script("barrier", HANG_LATE)
    with pytest.raises(Exception, match="not answered in time"):
        await first.release(["kv_cache"], deadline_s=0.1)
    second = remembering(tmp_path / "engines", beside=first)
    await second.connect()
    assert "barrier" in {entry.kind for entry in second.adapter.journal}, "it was asked before anything was believed"


@pytest.mark.parametrize("back", [False, True], ids=["in its release", "and once it was back"])
async def test_a_process_that_was_overtaken_sends_nothing(tmp_path: Path, back: bool) -> None:
    first = await remembering(tmp_path / "engines").connect()
    await first.pause()
    await first.drain()
    second = remembering(tmp_path / "engines", beside=first)
    await second.connect()
    await second.release(weights=V1)
    if back:
        await second.restore_weights()
        await second.update_weights(V1)
        await second.restore_kv()
        with pytest.raises(GuardRefused, match="another process moved"):
            await first.release(weights=V1)
    else:
        with pytest.raises(OperationFailed, match=r"its mapped tags hold .*: externally modified.* to released"):
            await first.release(weights=V1)
    assert first.state is (State.DRAINED if back else State.RELEASED)
    assert first.adapter.engine.deaths == []


async def test_a_memory_that_cannot_be_written_refuses_and_sticks_nothing(tmp_path: Path) -> None:
    engine = await remembering(tmp_path / "engines").connect()

    class Full:
        def save(self, engine: str, record: Record) -> None:
            raise OSError("disk full")

        def load(self, engine: str) -> Record | None:
            return None

    engine._session.store = Full()
    with pytest.raises(GuardRefused, match="disk full"):
        await engine.pause()
    assert engine.state is State.SERVING


async def test_an_engine_that_names_no_weights_can_be_updated() -> None:
    engine = await serving("e", TagSpec("kv_cache", "kv", "discarded", 64 * MIB))
    await engine.pause()
    await engine.drain()
    await engine.update_weights(V1)
    assert engine.state is State.DRAINED


def test_an_unknown_way_to_handle_failure_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="on_failure"):
        Policy(on_failure="restroe")  # type: ignore[arg-type]


async def test_participants_given_as_a_generator_take_part() -> None:
    fleet, _ = await fleet_of("a", "b", router=True)
    done = await fleet.pause(engines=(name for name in ("a", "b")))
    assert [record.engine for record in done] == ["a", "b"]


async def test_the_count_in_an_error_is_of_engines() -> None:
    fleet, _ = await fleet_of("a", "b")
    await fleet.offload(weights=V1)
    fleet["b"].adapter.script("load", REJECTED)
    with pytest.raises(FleetError, match="1 of 2 engines") as failed:
        await fleet.onload()
    assert [record.engine for record in failed.value.succeeded] == ["a"]
