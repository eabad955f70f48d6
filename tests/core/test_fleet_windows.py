"""The window of a fleet: offloaded for a training step, and back with the declared weights, whatever happens in it."""

from __future__ import annotations

import asyncio

import pytest
from rig import V1, V2, fleet_of, states

from lifecycle import Engine, EngineBusy, FleetError, State


async def until_drained(engine: Engine) -> None:
    for _ in range(1000):
        await asyncio.sleep(0)
        if engine.state is State.DRAINED:
            return
    raise AssertionError(f"{engine} did not drain")


async def test_offloaded_gives_the_memory_and_comes_back_with_the_declared_weights() -> None:
    fleet, _ = await fleet_of("a", "b")
    async with fleet.offloaded(weights=V1) as released:
        assert [record.dest for record in released] == [State.RELEASED] * 2
        assert all(engine.memory_is_free for engine in fleet)
    assert all(engine.adapter.engine.label == "v1" for engine in fleet)


async def test_offloaded_without_weights_reloads_the_last_good_source() -> None:
    fleet, journal = await fleet_of("a")
    async with fleet.offloaded(weights=V1):
        pass
    journal.clear()
    async with fleet.offloaded():
        pass
    assert "load(/models/step-1,v1,True)" in journal.calls("a")


async def test_weights_updated_inside_the_window_are_not_loaded_again() -> None:
    fleet, journal = await fleet_of("a")
    async with fleet.offloaded(weights=V1):
        await fleet.restore_weights()
        await fleet.update_weights(V2)
        assert await fleet.release(weights=V2)
    loads = [call for call in journal.calls("a") if call.startswith("load")]
    assert loads == ["load(/models/step-2,v2,True)"] * 2


async def test_the_version_in_the_window_wins() -> None:
    fleet, journal = await fleet_of("a")
    async with fleet.offloaded(weights=V1):
        await fleet.restore_weights()
        await fleet.update_weights(V2)
    assert [call for call in journal.calls("a") if call.startswith("load")] == ["load(/models/step-2,v2,True)"]
    assert fleet["a"].adapter.engine.label == "v2"


async def test_kv_alone_needs_no_source() -> None:
    fleet, journal = await fleet_of("a")
    async with fleet.offloaded(["kv_cache"]):
        pass
    assert journal.calls("a") == ["pause(abort)", "release(kv_cache)", "restore(kv_cache)", "flush", "resume"]


async def test_an_exception_of_the_training_step_comes_through_after_the_fleet_is_back() -> None:
    fleet, _ = await fleet_of("a", "b")
    with pytest.raises(ZeroDivisionError) as failed:
        async with fleet.offloaded(weights=V1):
            raise ZeroDivisionError("loss is nan")
    assert states(fleet) == {"a": "serving", "b": "serving"}
    assert not hasattr(failed.value, "__notes__")


async def test_what_failed_on_the_way_back_is_noted_on_the_exception_of_the_training_step() -> None:
    fleet, _ = await fleet_of("a", "b")

    async def step() -> None:
        async with fleet.offloaded(weights=V1):
            fleet["b"].adapter.engine.die("the trainer took its memory")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as failed:
        await step()
    assert states(fleet) == {"a": "serving", "b": "gone"}
    assert any("the fleet did not come back" in note and "b:" in note for note in failed.value.__notes__)


async def test_a_cancelled_training_step_brings_the_fleet_back() -> None:
    fleet, _ = await fleet_of("a")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1), fleet.offloaded(weights=V1):
            await asyncio.sleep(60)
    assert fleet["a"].state is State.SERVING


async def test_two_moves_at_once_are_refused() -> None:
    fleet, journal = await fleet_of("a", "b")
    fleet["a"].adapter.engine.stubborn = 20
    move = asyncio.create_task(fleet.offload(weights=V1))
    await asyncio.sleep(0)
    for verb in (fleet.onload, fleet.pause, fleet.drain):
        with pytest.raises(EngineBusy, match="offload is under way"):
            await verb(engines=["b"])
    await move
    assert states(fleet) == {"a": "released", "b": "released"}
    assert [call for call in journal.calls() if "release" in call].count("b: release(weights)") == 1


async def test_an_engine_in_a_move_takes_no_other_callers_command() -> None:
    """Somebody who resumes a drained engine while the others still drain would undo what the fleet relies on."""
    fleet, _ = await fleet_of("a", "b")
    fleet["a"].adapter.engine.stubborn = 50
    move = asyncio.create_task(fleet.offload(weights=V1))
    await until_drained(fleet["b"])
    with pytest.raises(EngineBusy):
        await fleet["b"].resume()
    await move


async def test_offload_says_which_engine_did_not_come_to_be_released() -> None:
    fleet, _ = await fleet_of("a", "b")
    fleet["a"].adapter.engine.stubborn = 50
    move = asyncio.create_task(fleet.offload(weights=V1))
    await until_drained(fleet["b"])
    fleet["b"]._session.go("contradicted", reason="somebody called verify()")
    with pytest.raises(FleetError, match="b"):
        await move


async def test_onload_says_which_engine_did_not_come_to_serve() -> None:
    fleet, _ = await fleet_of("a", "b")
    await fleet.offload(weights=V1)
    fleet["b"].adapter.engine.die("it was killed")
    await fleet["b"].verify()
    with pytest.raises(FleetError, match="b"):
        await fleet.onload()
    assert states(fleet) == {"a": "serving", "b": "gone"}
