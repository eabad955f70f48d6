"""rlix' resizing over scripted engines: orders, the gate on what stays resident, and the way back (contracts, C)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from frameworks.rlix_rig import V1, V2, Rig, resident
from frameworks.servers import push, until

from lifecycle import (
    ConfigurationError,
    Engine,
    FleetError,
    Group,
    Pushed,
    Refuted,
    State,
)
from lifecycle import Fleet as AsyncFleet
from lifecycle.core.errors import RouterError, RouterNotClosed
from lifecycle.core.units import GIB
from lifecycle.frameworks.rlix import _STATES, BlockingRolloutManager, RolloutManager
from lifecycle.store import Tenants
from lifecycle.sync import Fleet, Loop
from lifecycle.testing import (
    HANG,
    KEPT_WEIGHTS,
    KV_CACHE,
    LOST_AFTER,
    QUICK,
    REJECTED,
    Journal,
    ScriptedAdapter,
)

pytestmark = pytest.mark.virtual_time

# shrink


async def test_a_shrink_closes_the_router_then_aborts_drains_releases_and_measures() -> None:
    async with Rig() as rig:
        assert await rig.manager.shrink_engines([3, 1, 3], post_sleep_vram_threshold_gb=3.0, weights=V1) == [1, 3]
        assert rig.states == ["serving", "released", "serving", "released"]
        steps = rig.lines("e1", "router", "call", "idle -> proved", "residual")
        order = ["router close", "call pause(abort)", "idle", "call release(kv_cache", "residual"]
        at = [next(n for n, line in enumerate(steps) if line.startswith(each)) for each in order[:-1]]
        assert at == sorted(at)
        assert steps[-1].startswith("residual"), "the gate is asked last"
        assert rig.lines("e1", "call pause") == ["call pause(abort)"], "aborted once"
        assert rig.router.closed == {"e1", "e3"}
        assert rig.lines("e0", "call", "router") == rig.lines("e2", "call", "router") == []
        assert await rig.manager.get_engine_states() == {0: "active", 1: "offloaded", 2: "active", 3: "offloaded"}


async def test_an_unknown_index_is_a_key_error_and_an_empty_list_does_nothing() -> None:
    async with Rig() as rig:
        for verb in (rig.manager.shrink_engines, rig.manager.expand_engines, rig.manager.get_engine_states):
            with pytest.raises(KeyError, match="unknown engine_index 7; there are 0, 1, 2, 3"):
                await verb([1, 7])
        assert await rig.manager.shrink_engines([], post_sleep_vram_threshold_gb=1.0) == []
        assert await rig.manager.expand_engines([]) == []
        assert await rig.manager.get_engine_states([]) == {}
        assert rig.journal.calls() == []


@pytest.mark.parametrize(("remove", "add"), [([], []), ([0], [1])], ids=["none", "both"])
async def test_a_resize_is_one_of_the_two(remove: list[int], add: list[int]) -> None:
    async with Rig() as rig:
        with pytest.raises(ValueError, match="exactly one of dp_ranks_to_remove and dp_ranks_to_add"):
            await rig.manager.resize_infer(remove, add)
        assert rig.journal.calls() == []


async def test_a_resize_shrinks_and_a_resize_expands() -> None:
    async with Rig() as rig:
        assert await rig.manager.resize_infer([2, 3], [], weights=V1, post_sleep_vram_threshold_gb=2.0) == [2, 3]
        assert [engine.policy.residual_threshold_gib for engine in rig.engines] == [3.0, 3.0, 2.0, 2.0]
        assert await rig.manager.resize_infer([], [2, 3], weights=V2) == [2, 3]
        assert rig.states == ["serving"] * 4
        assert rig[3].desired.version == "v2"


async def test_engines_that_keep_their_weights_name_no_source() -> None:
    async with Rig(tags=(KEPT_WEIGHTS, KV_CACHE)) as rig:
        assert await rig.manager.shrink_engines([0]) == [0]
        assert await rig.manager.expand_engines([0]) == [0]


async def test_an_engine_of_a_group_that_is_never_offloaded_is_refused_by_name() -> None:
    async with Rig("e0") as rig:
        rig[0].offloads = False
        with pytest.raises(ConfigurationError, match=r"engine_index 0 \(e0\) is of group default, which has off"):
            await rig.manager.shrink_engines([0])
        assert rig.journal.calls() == []


# the way back


def stubborn(rig: Rig) -> None:
    rig[1].adapter.engine.stubborn = -1


def keeps_memory(rig: Rig) -> None:
    rig[1].adapter.engine.frees = False


SHRINK_FAULTS: dict[str, Callable[[Rig], object]] = {
    "the abort is refused": lambda rig: rig[1].adapter.script("pause", REJECTED),
    "the abort hangs": lambda rig: rig[1].adapter.script("pause", HANG),
    "the drain never ends": stubborn,
    "the release is refused": lambda rig: rig[1].adapter.script("release", REJECTED),
    "the release answers nothing": lambda rig: rig[1].adapter.script("release", LOST_AFTER),
    "the release frees nothing": keeps_memory,
    "the residual is above the threshold": lambda rig: resident(rig, 1, 4 * GIB),
}


@pytest.mark.parametrize("fault", SHRINK_FAULTS)
async def test_a_shrink_that_fails_serves_again_behind_an_open_router(fault: str) -> None:
    """There, the router stays closed and the state stays `disabling`."""
    async with Rig() as rig:
        SHRINK_FAULTS[fault](rig)
        with pytest.raises(FleetError, match=r"e1: (pause|drain|release) failed"):
            await rig.manager.shrink_engines([0, 1], weights=V1, deadline_s=0.4)
        assert rig.states == ["serving"] * 4
        assert rig.router.closed == set()
        assert await rig.manager.get_engine_states() == dict.fromkeys(range(4), "active")
        assert not any(engine.memory_is_free for engine in rig.engines)
        assert all(engine.adapter.engine.submit() for engine in rig.engines)


async def test_a_router_that_does_not_close_keeps_everything_as_it_is() -> None:
    async with Rig() as rig:
        rig.router.close_fails = RouterError("it answers 500")
        with pytest.raises(RouterNotClosed, match="Nothing was sent to the engines"):
            await rig.manager.shrink_engines([0, 1], weights=V1)
        assert rig.journal.calls() == []
        assert rig.states == ["serving"] * 4


async def test_one_that_only_a_push_brings_back_stays_and_the_error_says_so() -> None:
    async with Rig() as rig:
        keeps_memory(rig)
        with pytest.raises(FleetError) as failed:
            await rig.manager.shrink_engines([1], weights=Pushed(push, "v1"), deadline_s=0.3)
        assert rig.states[1] == "released"
        assert any("stays released" in note for note in failed.value.__notes__)
        assert await rig.manager.get_engine_states([1]) == {1: "disabling"}, "its devices are not handed over"


async def test_a_shrink_that_is_given_up_serves_again() -> None:
    async with Rig() as rig:
        rig[1].adapter.script("release", HANG)
        task = asyncio.create_task(rig.manager.shrink_engines([0, 1], weights=V1, deadline_s=3.0))
        await until(rig.journal, "e1: call release")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert rig.states == ["serving"] * 4
        assert rig.router.closed == set()


EXPAND_FAULTS: dict[str, tuple[Callable[[Rig], object], str]] = {
    "the sync fails": (lambda rig: rig[1].adapter.script("load", REJECTED), "offloaded"),
    # It is released still, and nothing was measured since: nobody gets its devices before it was released again.
    "the weights do not come back": (lambda rig: rig[1].adapter.script("restore", REJECTED), "disabling"),
}


@pytest.mark.parametrize("fault", EXPAND_FAULTS)
async def test_an_expand_that_fails_gives_its_memory_back_and_the_others_serve(fault: str) -> None:
    """There, a sync that fails keeps the GPU memory."""
    async with Rig() as rig:
        await rig.manager.shrink_engines([0, 1], weights=V1)
        provoke, ends = EXPAND_FAULTS[fault]
        provoke(rig)
        with pytest.raises(FleetError, match=r"e1: (restore_weights|update_weights) failed"):
            await rig.manager.expand_engines([0, 1], weights=V2)
        assert rig.states == ["serving", "released", "serving", "serving"]
        assert rig.router.closed == {"e1"}, "it gets no requests"
        assert await rig.manager.get_engine_states([0, 1]) == {0: "active", 1: ends}
        assert rig[1].memory_is_free is (ends == "offloaded")
        assert await rig.manager.expand_engines([1], weights=V2) == [1]
        assert rig.router.closed == set()


async def test_an_expand_syncs_the_weights_before_the_router_opens() -> None:
    async with Rig() as rig:
        await rig.manager.shrink_engines([0, 1], weights=V1)
        rig.journal.clear()
        assert await rig.manager.expand_engines([0, 1], weights=Pushed(push, "v2")) == [0, 1]
        steps = rig.lines("e0", "call", "router")
        order = ["call restore(weights)", "call push_tensor", "call restore(kv_cache)", "call resume", "router open"]
        at = [next(n for n, line in enumerate(steps) if line.startswith(each)) for each in order]
        assert at == sorted(at)


# the ledger


async def test_a_device_is_handed_over_after_a_release_that_succeeded_and_never_else(tmp_path: Path) -> None:
    ledger = Tenants(tmp_path / "tenants.sqlite3", budgets={"gpu-e0": 16 * GIB, "gpu-e1": 16 * GIB})
    policy = replace(QUICK, room_wait_s=0.05)
    async with Rig("e0", "e1", policy=policy, tenants=ledger) as rig:

        def held(index: int) -> float:
            name = f"{rig[index].adapter.url} of pid {os.getpid()}"
            (found,) = [each for each in ledger.tenancies() if each.tenant.name == name]
            return (found.size_bytes or 0) / GIB

        await rig.manager.shrink_engines([0], weights=V1)
        keeps_memory(rig)
        with pytest.raises(FleetError):
            await rig.manager.shrink_engines([1], weights=V1, deadline_s=0.3)
        assert held(0) < 3.0 < held(1)


# states


def test_every_state_has_a_word() -> None:
    assert set(_STATES) == set(State)


@pytest.mark.parametrize(
    ("state", "word"),
    [(State.SERVING, "active"), (State.DRAINED, "disabling"), (State.WEIGHTS_RESTORED, "loading")],
)
async def test_a_state_on_the_way_is_told(state: State, word: str) -> None:
    async with Rig("e0") as rig:
        if state is not State.SERVING:
            await rig.fleet.pause()
            await rig[0].drain()
        if state is State.WEIGHTS_RESTORED:
            await rig[0].release(weights=V1)
            await rig[0].restore_weights()
        assert await rig.manager.get_engine_states() == {0: word}


async def test_names_map_indices_that_are_no_places() -> None:
    """There, a pool that begins at 2 and one of 0, 2, 4, 6 were mapped to the wrong engines."""
    async with Rig() as rig:
        manager = RolloutManager(rig.fleet, names={4: "e1", 6: "e0"})
        assert await manager.shrink_engines([4], weights=V1) == [4]
        assert rig.states == ["serving", "released", "serving", "serving"]
        with pytest.raises(KeyError, match="unknown engine_index 0; there are 4, 6"):
            await manager.shrink_engines([0])
        with pytest.raises(ConfigurationError, match="one engine under two indices"):
            RolloutManager(rig.fleet, names={0: "e1", 1: "e1"})


async def test_only_those_are_shrunk_whose_memory_is_free() -> None:
    """One that a move goes on without is not among them."""
    policy = replace(QUICK, on_failure="quarantine")
    async with Rig(policy=policy) as rig:
        rig[1].adapter.script("pause", REJECTED)
        rig[1].adapter.always("answers", Refuted(reason="no token"))
        assert await rig.manager.shrink_engines([0, 1], weights=V1) == [0]
        assert rig.fleet.quarantined.keys() == {"e1"}


def test_the_blocking_manager_has_the_same_verbs() -> None:
    rig, loop = Rig(), Loop()
    with Fleet(rig.fleet, loop) as fleet:
        manager = BlockingRolloutManager(fleet)
        assert manager.resize_infer([0], [], weights=V1) == [0]
        assert manager.get_engine_states([0, 1]) == {0: "offloaded", 1: "active"}
        assert 0 <= manager.check_residual([0])[0] < 3.0
        assert manager.expand_engines([0]) == [0]
        assert manager.shrink_engines([], post_sleep_vram_threshold_gb=3.0) == []


def test_groups_are_indexed_in_the_order_of_the_fleet() -> None:
    adapters = [ScriptedAdapter(name, journal=Journal()) for name in ("a", "b", "c")]
    engines = [Engine(each, name=each.name, group=group) for each, group in zip(adapters, "xyx", strict=True)]
    fleet = AsyncFleet(engines, groups={"x": Group(), "y": Group()})
    assert [engine.name for engine in RolloutManager(fleet)._engines.values()] == ["a", "c", "b"]
