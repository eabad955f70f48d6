"""The steps of a window: weights, an update, the KV cache; and leaving it from wherever the fleet is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from quarantine_rig import fleet_with
from rig import V1, V2, fleet_of, states

from lifecycle import (
    ConfigurationError,
    Engine,
    EngineBusy,
    EngineHeld,
    Fleet,
    FleetError,
    FromDisk,
    Kept,
    Policy,
    Pushed,
    State,
    Window,
)
from lifecycle.store.leases import Leases
from lifecycle.testing import DIE, HANG, QUICK, REJECTED, ScriptedAdapter

V3 = FromDisk("/models/step-3", "v3")
BACK = ["restore(weights)", "load(/models/step-1,v1,True)", "restore(kv_cache)", "flush", "resume"]


async def push(engines: Sequence[Engine]) -> None:
    for engine in engines:
        await engine.push("tensor")


def held(fleet: Fleet) -> set[str]:
    """What the weights of the engines are, as far as is known."""
    return {str(contents) for engine in fleet for contents in engine.facts.contents.values()}


async def served_before(*names: str, **how: Any) -> tuple[Fleet, Any]:
    """A fleet that serves v1, loaded from disk."""
    fleet, journal = await fleet_of(*names, **how)
    async with fleet.offloaded(weights=V1):
        pass
    journal.clear()
    return fleet, journal


async def test_a_window_is_the_sequence_of_its_releases_and_says_what_is_known() -> None:
    fleet, _ = await fleet_of("a", "b")
    async with fleet.offloaded(weights=V1) as window:
        assert isinstance(window, Window)
        first, second = window
        assert window.transitions == window[:] == (first, second)
        assert (len(window), window[-1], bool(window)) == (2, second, True)
        assert window == [first, second]
        assert window != [first]
        assert [engine.name for engine in window.engines] == ["a", "b"]
        assert window.versions == {"a": None, "b": None}
        assert window.returned_bytes == {"a": first.returned_bytes, "b": second.returned_bytes}
        assert first.returned_bytes
        assert set(window.durations_s) == {"offload"}
        assert window.is_open
        assert repr(window) == "<Window open a released, b released>"
        await window.update_weights()
        assert window.versions == {"a": "v1", "b": "v1"}
        assert set(window.durations_s) == {"offload", "update_weights"}
        assert all(seconds > 0 for seconds in window.durations_s.values())
    assert not window.is_open
    assert repr(window) == "<Window left a serving, b serving>"


async def test_each_step_ends_where_it_says_and_leaving_goes_on_from_there() -> None:
    fleet, journal = await fleet_of("a")
    async with fleet.offloaded(weights=V1) as window:
        journal.clear()
        (restored,) = await window.restore_weights()
        assert (restored.command, restored.dest) == ("restore_weights", State.WEIGHTS_RESTORED)
        assert journal.calls("a") == BACK[:1]
        (updated,) = await window.update_weights()
        assert (updated.command, updated.dest) == ("update_weights", State.WEIGHTS_RESTORED)
        assert journal.calls("a") == BACK[:2]
        (mapped,) = await window.restore_kv()
        assert (mapped.command, mapped.dest) == ("restore_kv", State.KV_RESTORED)
        assert journal.calls("a") == BACK[:4]
    assert journal.calls("a") == BACK


@pytest.mark.parametrize("steps", [(), ("restore_weights",), ("update_weights",), ("restore_kv",)])
async def test_a_step_brings_what_is_missing_before_it_and_is_sent_once(steps: tuple[str, ...]) -> None:
    fleet, journal = await fleet_of("a", "b")
    async with fleet.offloaded(weights=V1) as window:
        journal.clear()
        for step in steps:
            assert len(await getattr(window, step)()) == 2
            once = journal.calls()
            assert await getattr(window, step)() == []
            assert journal.calls() == once
    assert [journal.calls(name) for name in "ab"] == [BACK, BACK]


async def test_an_update_in_the_window_wins_over_what_the_window_was_entered_with() -> None:
    fleet, journal = await fleet_of("a")
    async with fleet.offloaded(weights=V1) as window:
        await window.restore_weights()
        await window.update_weights(V2)
        assert window.versions == {"a": "v2"}
        assert fleet["a"].desired.version == "v2"
    assert [call for call in journal.calls("a") if call.startswith("load")] == ["load(/models/step-2,v2,True)"]
    assert held(fleet) == {"loaded(v2)"}


async def test_weights_that_are_kept_are_not_updated_by_a_step_that_names_none() -> None:
    fleet, journal = await fleet_of("a")
    async with fleet.offloaded(["kv_cache"]) as window:
        assert await window.update_weights() == []
        journal.clear()
        assert len(await window.restore_kv()) == 1
    assert not [call for call in journal.calls("a") if call.startswith("load")]


async def test_sources_by_group() -> None:
    fleet, _ = await fleet_of("policy/a", "teacher/b")
    async with fleet.offloaded(weights=V1) as window:
        await window.update_weights({"policy": V2})
        assert window.versions == {"a": "v2", "b": "v1"}
    assert [str(fleet[name].facts.contents["weights"]) for name in "ab"] == ["loaded(v2)", "loaded(v1)"]


async def test_a_source_for_a_group_that_there_is_not_is_refused_before_anything_is_sent() -> None:
    fleet, journal = await fleet_of("policy/a")
    async with fleet.offloaded(weights=V1) as window:
        journal.clear()
        with pytest.raises(ConfigurationError, match="no group 'polciy'; the fleet has policy"):
            await window.update_weights({"polciy": V2})
        for wrong in ("v2", {"policy": "v2"}):
            with pytest.raises(ConfigurationError, match="'v2' is no source of weights"):
                await window.update_weights(wrong)  # type: ignore[arg-type]
        with pytest.raises(FleetError, match="the engine has not kept them"):
            await window.update_weights(Kept())
        assert journal.calls() == []
    assert held(fleet) == {"loaded(v1)"}


@pytest.mark.parametrize("step", ["restore_weights", "update_weights", "restore_kv"])
async def test_a_step_of_a_window_that_was_left_is_refused(step: str) -> None:
    fleet, journal = await fleet_of("a")
    async with fleet.offloaded(weights=V1) as window:
        pass
    journal.clear()
    with pytest.raises(ConfigurationError, match=rf"window.{step}\(\): this window was left.*a serving.*fleet.{step}"):
        await getattr(window, step)()
    assert journal.calls() == []


async def test_a_push_in_the_body_of_the_window() -> None:
    fleet, journal = await fleet_of("a", "b")
    async with fleet.offloaded(weights=V1) as window:
        async with window.updating_weights("v2") as engines:
            assert [engine.name for engine in engines] == ["a", "b"]
            await push(engines)
        assert window.versions == {"a": "v2", "b": "v2"}
    assert held(fleet) == {"loaded(v2)"}
    assert not [call for call in journal.calls() if "load(" in call]


# a step that fails


async def test_of_a_step_that_failed_half_the_rest_is_asked_for_again() -> None:
    fleet, journal = await fleet_of("a", "b")
    async with fleet.offloaded(weights=V1) as window:
        await window.restore_weights()
        fleet["b"].adapter.script("load", REJECTED)
        with pytest.raises(FleetError, match="b: update_weights failed") as failed:
            await window.update_weights(V2)
        assert [each.engine for each in failed.value.succeeded] == ["a"]
        assert window.versions == {"a": "v2", "b": None}
        journal.clear()
        assert [each.engine for each in await window.update_weights(V2)] == ["b"]
        assert not journal.calls("a")
        assert window.versions == {"a": "v2", "b": "v2"}
    assert held(fleet) == {"loaded(v2)"}


async def test_leaving_goes_on_from_a_step_that_failed_half() -> None:
    fleet, _ = await fleet_of("a", "b")
    async with fleet.offloaded(weights=V1) as window:
        fleet["b"].adapter.script("load", REJECTED)
        with pytest.raises(FleetError):
            await window.update_weights(V2)
    assert states(fleet) == {"a": "serving", "b": "serving"}
    assert held(fleet) == {"loaded(v2)"}


@pytest.mark.parametrize("step", ["update_weights", "restore_kv"])
async def test_a_fleet_that_was_updated_half_goes_back_to_the_weights_of_before(step: str) -> None:
    fleet, journal = await served_before("a", "b")
    with pytest.raises(FleetError, match="b: update_weights failed") as failed:
        async with fleet.offloaded(weights=V2) as window:
            fleet["b"].adapter.script("load", REJECTED)
            await getattr(window, step)()
    assert states(fleet) == {"a": "serving", "b": "serving"}
    assert held(fleet) == {"loaded(v1)"}
    assert {engine.desired.version for engine in fleet} == {"v1"}
    assert not hasattr(failed.value, "__notes__")
    assert [call for call in journal.calls("a") if call.startswith("load")][-1] == "load(/models/step-1,v1,True)"


async def test_an_update_that_ended_on_all_is_served_though_the_body_failed_after_it() -> None:
    fleet, journal = await served_before("a", "b")
    with pytest.raises(ZeroDivisionError):
        async with fleet.offloaded(weights=V1) as window:
            await window.update_weights(V2)
            _ = 1 / 0
    assert states(fleet) == {"a": "serving", "b": "serving"}
    assert held(fleet) == {"loaded(v2)"}
    assert [call for call in journal.calls("a") if call.startswith("load")] == ["load(/models/step-2,v2,True)"]


async def test_pushed_weights_that_all_have_are_served_though_the_body_failed_after_it() -> None:
    known = {"launch_source": FromDisk("/models/base", "v0")}
    fleet, journal = await fleet_of("a", "b", caps={"a": known, "b": known})
    with pytest.raises(ZeroDivisionError):
        async with fleet.offloaded(weights=Pushed(push, "v2")) as window:
            await window.update_weights()
            _ = 1 / 0
    assert held(fleet) == {"loaded(v2)"}
    assert {engine.desired.version for engine in fleet} == {"v2"}
    assert not [call for call in journal.calls() if "load(" in call]


async def test_before_any_update_a_failed_body_brings_back_the_weights_of_before() -> None:
    fleet, _ = await served_before("a")
    with pytest.raises(ZeroDivisionError):
        async with fleet.offloaded(weights=V2) as window:
            await window.restore_weights()
            _ = 1 / 0
    assert held(fleet) == {"loaded(v1)"}


async def test_an_engine_that_failed_before_a_step_is_named_by_it() -> None:
    fleet, _ = await fleet_of("a", "b")
    async with fleet.offloaded(weights=V1) as window:
        fleet["b"]._session.go("contradicted", reason="a test")
        with pytest.raises(FleetError, match="1 of 2 engines: b:") as failed:
            await window.restore_weights()
        assert [each.engine for each in failed.value.succeeded] == ["a"]
    assert states(fleet) == {"a": "serving", "b": "serving"}, "it was found again on the way out"


async def test_a_step_goes_on_without_an_engine_that_died_where_the_policy_says_so() -> None:
    fleet = await fleet_with()
    async with fleet.offloaded(weights=V1) as window:
        fleet["a"].adapter.script("restore", DIE)
        done = await window.restore_weights()
        assert [each.engine for each in done] == ["b", "c"]
        assert set(fleet.quarantined) == {"a"}
        assert len(await window.restore_kv()) == 2
    assert states(fleet) == {"a": "gone", "b": "serving", "c": "serving"}


# a step that is cancelled, or under way


@pytest.mark.virtual_time
async def test_a_step_that_was_cancelled_leaves_a_window_that_comes_back() -> None:
    fleet, _ = await fleet_of("a", "b")
    async with fleet.offloaded(weights=V1) as window:
        fleet["a"].adapter.script("restore", HANG)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await window.restore_weights()
        assert fleet["a"].state is State.FAILED
        assert window.is_open
    assert states(fleet) == {"a": "serving", "b": "serving"}
    assert held(fleet) == {"loaded(v1)"}


@pytest.mark.virtual_time
async def test_a_cancellation_in_a_step_comes_through_once_the_fleet_is_back() -> None:
    fleet, _ = await served_before("a", "b")
    fleet["a"].adapter.script("load", HANG)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), fleet.offloaded(weights=V2) as window:
            await window.update_weights()
    assert states(fleet) == {"a": "serving", "b": "serving"}
    assert held(fleet) == {"loaded(v1)"}


def waits_at(fleet: Fleet, name: str, call: str) -> tuple[asyncio.Event, asyncio.Event]:
    """The engine's calls of this name wait for the second event; the first says that one was made."""
    arrived, go, adapter = asyncio.Event(), asyncio.Event(), fleet[name].adapter
    send = adapter.send

    async def waits(asked: Any, *, deadline_s: float) -> Any:
        if asked.name == call:
            arrived.set()
            await go.wait()
        return await send(asked, deadline_s=deadline_s)

    adapter.send = waits
    return arrived, go


async def test_leaving_waits_for_a_step_that_is_under_way() -> None:
    """`gather` does not cancel the others when one fails: the step runs on while the error leaves the body."""
    fleet, journal = await served_before("a")
    arrived, go = waits_at(fleet, "a", "restore")

    async def trainer() -> None:
        await arrived.wait()
        asyncio.get_running_loop().call_soon(go.set)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as failed:
        async with fleet.offloaded(weights=V2) as window:
            await asyncio.gather(window.restore_weights(), trainer())
    assert not hasattr(failed.value, "__notes__")
    assert states(fleet) == {"a": "serving"}
    assert held(fleet) == {"loaded(v1)"}
    assert journal.calls("a").count("restore(weights)") == 1


@pytest.mark.virtual_time
async def test_a_cancellation_while_leaving_waits_for_a_step_ends_that_step_first() -> None:
    fleet, _ = await fleet_of("a")
    fleet["a"].adapter.script("restore", HANG)
    steps = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), fleet.offloaded(weights=V1) as window:
            steps.append(asyncio.create_task(window.restore_weights()))
            await asyncio.sleep(0.01)
    (outcome,) = await asyncio.gather(*steps, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError)
    assert states(fleet) == {"a": "serving"}


async def test_a_second_step_at_once_is_refused() -> None:
    fleet, _ = await fleet_of("a")
    async with fleet.offloaded(weights=V1) as window:
        arrived, go = waits_at(fleet, "a", "restore")
        first = asyncio.create_task(window.restore_weights())
        await arrived.wait()
        with pytest.raises(EngineBusy, match="restore_weights is under way"):
            await window.restore_kv()
        with pytest.raises(EngineBusy, match="restore_weights is under way"):
            await fleet.onload()
        go.set()
        await first
    assert states(fleet) == {"a": "serving"}


async def test_after_an_onload_in_the_body_no_step_has_anything_to_do() -> None:
    fleet, journal = await fleet_of("a")
    async with fleet.offloaded(weights=V1) as window:
        await fleet.onload()
        journal.clear()
        assert await window.restore_weights() == await window.restore_kv() == []
        with pytest.raises(FleetError, match="it serves other weights"):
            await window.update_weights(V2)
        assert journal.calls() == []
    assert (journal.calls(), states(fleet)) == ([], {"a": "serving"})


async def test_the_engines_stay_with_their_driver_between_the_steps(tmp_path: Path) -> None:
    adapter, leases = ScriptedAdapter("e"), tmp_path / "leases"
    first, second = (
        Fleet([Engine(adapter, name="e", policy=QUICK, probe=adapter.probe, lease=Leases(leases))]) for _ in range(2)
    )
    async with first, second:
        async with first.offloaded(weights=V1) as window:
            for step in (window.restore_weights, window.update_weights, window.restore_kv):
                await step()
                with pytest.raises(EngineHeld):
                    await second.resume()
        await second.pause()


@pytest.mark.virtual_time
async def test_the_deadline_of_the_window_is_that_of_its_steps_unless_they_have_one() -> None:
    fleet, _ = await fleet_of("a", policy=Policy(settle_s=0.05, poll_s=0.001))
    loop = asyncio.get_running_loop()
    for own_s, least_s, most_s in ((None, 2.0, 3.5), (0.5, 0.4, 1.5)):
        async with fleet.offloaded(weights=V1, deadline_s=3.0) as window:
            fleet["a"].adapter.script("restore", HANG)
            began_s = loop.time()
            with pytest.raises(FleetError):
                await window.restore_weights(deadline_s=own_s)
            assert least_s < loop.time() - began_s < most_s
    for wrong_s in (0.0, -1.0):
        with pytest.raises(ConfigurationError, match="deadline_s must be a finite number > 0"):
            async with fleet.offloaded(weights=V1) as window:
                await window.restore_weights(deadline_s=wrong_s)
    assert states(fleet) == {"a": "serving"}
