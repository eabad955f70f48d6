"""rlix' gate on what stays resident of an engine, and its wait until all are offloaded (contracts, C)."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from frameworks.rlix_rig import V1, Rig, resident

from lifecycle import (
    ConfigurationError,
    FleetError,
    NotProved,
    Unmeasurable,
)
from lifecycle.core.units import GIB
from lifecycle.settings.schema import load
from lifecycle.testing import (
    QUICK,
    REJECTED,
)

pytestmark = pytest.mark.virtual_time

# the gate


@pytest.mark.parametrize("gib", [0.5, 1.75, 3.0])
async def test_a_residual_of_just_the_threshold_passes_and_a_byte_more_is_refused(gib: float) -> None:
    async with Rig() as rig:
        resident(rig, 0, round(gib * GIB))
        assert await rig.manager.shrink_engines([0], post_sleep_vram_threshold_gb=gib, weights=V1) == [0]
        resident(rig, 1, round(gib * GIB) + 1)
        with pytest.raises(FleetError, match=r"e1: release failed.*exceeds") as failed:
            await rig.manager.shrink_engines([1], post_sleep_vram_threshold_gb=gib, weights=V1, deadline_s=0.3)
        assert isinstance(failed.value.exceptions[0], NotProved)


async def test_without_an_argument_the_threshold_is_that_of_the_policy_which_is_3_gib() -> None:
    async with Rig() as rig:
        resident(rig, 0, 3 * GIB)
        assert await rig.manager.shrink_engines([0], weights=V1) == [0]
        resident(rig, 1, 3 * GIB + 1)
        with pytest.raises(FleetError, match="exceeds"):
            await rig.manager.shrink_engines([1], weights=V1, deadline_s=0.3)


async def test_the_variable_of_miles_reaches_the_gate(monkeypatch: pytest.MonkeyPatch, bare_environment: None) -> None:
    monkeypatch.setenv("MILES_MAX_RESIDUAL_GPU_MEM_GB", "1.5")
    policy = replace(QUICK, residual_threshold_gib=load().settings.residual_threshold_gib)
    async with Rig(policy=policy) as rig:
        resident(rig, 0, round(1.5 * GIB))
        assert await rig.manager.shrink_engines([0], weights=V1) == [0]
        resident(rig, 1, round(1.5 * GIB) + 1)
        with pytest.raises(FleetError, match="exceeds"):
            await rig.manager.shrink_engines([1], weights=V1, deadline_s=0.3)


@pytest.mark.parametrize("gib", [float("nan"), float("inf"), 0.0, -1.0])
async def test_a_threshold_that_every_residual_would_pass_is_refused(gib: float) -> None:
    async with Rig() as rig:
        with pytest.raises(ConfigurationError, match="post_sleep_vram_threshold_gb must be a finite number > 0"):
            await rig.manager.shrink_engines([0], post_sleep_vram_threshold_gb=gib, weights=V1)
        assert rig.journal.calls() == []
        assert rig[0].policy.residual_threshold_gib == 3.0


async def test_the_threshold_holds_from_there_on_and_not_after_a_shrink_that_failed() -> None:
    async with Rig() as rig:
        await rig.manager.shrink_engines([0], post_sleep_vram_threshold_gb=5.0, weights=V1)
        resident(rig, 0, 4 * GIB)
        await rig[0].verify()
        assert rig[0].memory_is_free, "4 GiB are within the 5 that it was let keep"
        rig[1].adapter.script("release", REJECTED)
        with pytest.raises(FleetError):
            await rig.manager.shrink_engines([1], post_sleep_vram_threshold_gb=5.0, weights=V1)
        assert rig[1].policy.residual_threshold_gib == 3.0


async def test_an_engine_that_cannot_be_measured_is_told_from_one_that_is_gone() -> None:
    async with Rig() as rig:
        await rig.manager.shrink_engines([0, 1], weights=V1)
        rig[0].adapter.engine.die("killed")
        await rig[0].verify()
        assert await rig.manager.get_engine_states([0]) == {0: "shell"}
        assert await rig.manager.check_residual([0]) == {0: 0.0}, "its devices are free"
        rig[1].adapter.probe.always = Unmeasurable(reason="no process of the tree is on any GPU")
        with pytest.raises(FleetError, match="cannot be read now: no process of the tree is on any GPU"):
            await rig.manager.check_residual([1])
        assert await rig.manager.get_engine_states([1]) == {1: "disabling"}


async def test_the_liveness_gate_waits_until_all_are_offloaded_and_then_measures() -> None:
    async with Rig() as rig:
        gate = asyncio.create_task(rig.manager.check_residual([0], post_sleep_vram_threshold_gb=3.0))
        await asyncio.sleep(0)
        await rig.manager.shrink_engines([0], weights=V1)
        (kept,) = (await gate).values()
        assert 0 <= kept < 3.0
        resident(rig, 0, 4 * GIB)
        with pytest.raises(FleetError, match=r"1 of 1 engines keep their devices: .*exceeds"):
            await rig.manager.check_residual([0])
        with pytest.raises(TimeoutError, match=r"not offloaded within 0\.05 s, so nothing was measured: e1 serving"):
            await rig.manager.check_residual([0, 1], deadline_s=0.05)
