"""What is believed of an engine is as old as its last observation: a window relies on nothing older than itself."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from another_driver import AnotherDriver, alive, url

from lifecycle import Engine, Fleet, FleetError, FromDisk, Policy, Proved, State, Unmeasurable
from lifecycle.store.sqlite import Store

pytestmark = pytest.mark.slow

MIB = 1 << 20
#: What a released engine holds at the most, and a serving one at the least.
RELEASED_MIB, SERVING_MIB = 128, 180


async def held_mib(engine: Engine) -> int:
    """What the engine's processes hold now, read apart from what is believed."""
    reading = await engine.read_residual()
    assert not isinstance(reading, Unmeasurable)
    return reading.resident_bytes // MIB


async def enter_and_leave(fleet: Fleet, step: FromDisk) -> None:
    """A window whose memory is free, as measured inside it."""
    async with fleet.offloaded(weights=step):
        for engine in fleet:
            assert await held_mib(engine) <= RELEASED_MIB, "the trainer was let in beside the engine"
            assert engine.memory_is_free
    assert [engine.state for engine in fleet] == [State.SERVING] * len(fleet)


async def test_an_engine_that_restarted_while_released_is_released_again(start, step_1, policy: Policy) -> None:
    process = start()
    async with Fleet.connect([url(process)], policy=policy) as fleet:
        await fleet.offload(weights=step_1)
        process.kill()
        again = start(port=process.port)
        await enter_and_leave(fleet, step_1)
        assert alive(again)
        assert {str(held) for held in fleet.engines[0].facts.contents.values()} == {"loaded(step-1)"}


@pytest.mark.parametrize("opens", [True, False], ids=["and opened", "and left closed"])
async def test_an_engine_that_another_driver_restored_is_released_again(
    start, step_1, policy: Policy, opens: bool
) -> None:
    process = start()
    async with Fleet.connect([url(process)], policy=policy) as fleet:
        await fleet.offload(weights=step_1)
        other = AnotherDriver(process)
        other.restore("weights", "kv_cache")
        if opens:
            other.resume()
        await enter_and_leave(fleet, step_1)
        assert alive(process)
        other.generate()


async def test_a_release_of_what_another_driver_restored_is_refused_and_sends_nothing(
    start, step_1, policy: Policy
) -> None:
    process = start()
    async with Fleet.connect([url(process)], policy=policy) as fleet:
        (engine,) = fleet
        await fleet.offload(weights=step_1)
        AnotherDriver(process).restore("weights", "kv_cache")
        AnotherDriver(process).resume()
        with pytest.raises(Exception, match=r"refused before anything was sent: .* release refused in state"):
            await fleet.release(weights=step_1)
        assert engine.facts.mapped == {"weights": True, "kv_cache": True}
        assert not engine.memory_is_free


async def test_memory_that_grew_since_the_release_is_refused_with_figures(start, step_1) -> None:
    process = start()
    strict = Policy(residual_threshold_gib=0.0625, settle_s=1.0, poll_s=0.05)
    async with Fleet.connect([url(process)], policy=strict) as fleet:
        (engine,) = fleet
        await fleet.offload(weights=step_1)
        assert engine.memory_is_free
        engine._session.policy = Policy(residual_threshold_gib=0.01, settle_s=1.0, poll_s=0.05)
        with pytest.raises(
            FleetError, match=r"memory_returned is refuted: \d+ MiB resident now exceeds 10 MiB allowed"
        ):
            async with fleet.offloaded(weights=step_1):
                raise AssertionError("entered")
        assert not engine.memory_is_free
        engine._session.policy = strict
        await enter_and_leave(fleet, step_1)


async def test_a_second_driver_measures_what_the_first_one_kept(start, step_1, policy: Policy, tmp_path: Path) -> None:
    process, stores = start(), [Store(tmp_path / "engines") for _ in range(3)]
    async with Fleet.connect([url(process)], policy=policy, store=stores[0]) as first:
        await first.offload(weights=step_1)
        async with Fleet.connect([url(process)], policy=policy, store=stores[1]) as second:
            (engine,) = second
            assert engine.state is State.RELEASED
            assert engine.memory_is_free
            figures = engine.conditions["memory_returned"].verdict.figures
            assert figures["returned_bytes"] > 150 * MIB, "what the release returned stands beside what is held now"
            await first.onload()
            assert await engine.verify() is not State.RELEASED
            assert not engine.memory_is_free
            assert await held_mib(engine) >= SERVING_MIB
        AnotherDriver(process).pause()
    stores[2].close()


async def test_what_was_kept_of_a_release_is_not_believed_where_memory_came_back(
    start, step_1, policy: Policy, tmp_path: Path
) -> None:
    process = start()
    async with Fleet.connect([url(process)], policy=policy, store=Store(tmp_path / "engines")) as first:
        await first.offload(weights=step_1)
        row = first.engines[0].conditions["memory_returned"].verdict
        assert isinstance(row, Proved)
    AnotherDriver(process).restore("weights", "kv_cache")
    async with Fleet.connect([url(process)], policy=policy, store=Store(tmp_path / "engines")) as second:
        (engine,) = second
        assert not engine.memory_is_free
        assert engine.facts.mapped == {"weights": True, "kv_cache": True}, "told by its bytes"
        await enter_and_leave(second, step_1)
        assert alive(process)


async def test_an_onload_of_what_is_believed_to_serve_brings_home_what_does_not(start, step_1, policy: Policy) -> None:
    processes = [start(), start()]
    async with Fleet.connect([url(each) for each in processes], policy=policy) as fleet:
        await fleet.offload(weights=step_1)
        await fleet.onload()
        AnotherDriver(processes[0]).pause()
        AnotherDriver(processes[1]).pause()
        AnotherDriver(processes[1]).release("kv_cache", "weights")
        await fleet.onload()
        assert [engine.state for engine in fleet] == [State.SERVING, State.SERVING]
    for process in processes:
        assert AnotherDriver(process).generate()


async def test_verifying_takes_no_longer_than_it_is_given(start, step_1, policy: Policy) -> None:
    process = start()
    async with Fleet.connect([url(process)], policy=policy) as fleet:
        await fleet.offload(weights=step_1)
        os.kill(process.pid, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            with pytest.raises(FleetError):
                await fleet.offload(weights=step_1, deadline_s=1.0)
            assert time.monotonic() - begun < 2.0
        finally:
            os.kill(process.pid, signal.SIGCONT)
        assert fleet.engines[0].state is State.FAILED
        await asyncio.wait_for(fleet.engines[0].recover(), 20.0)
        assert fleet.engines[0].state is State.RELEASED
