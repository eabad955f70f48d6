"""One of three real engines is killed in a move: the others are released, the trainer runs, and they serve again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace

import pytest
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import BaseObserver, Fleet, FleetError, FromDisk, Policy, State
from lifecycle.core.observer import MoveEvent
from lifecycle.demo.trainer import training
from lifecycle.testing import ScriptedRouter

pytestmark = pytest.mark.slow

Start = Callable[..., LoopbackProcess]


class Kills(BaseObserver):
    """Sends SIGKILL to one engine when a phase begins, once."""

    def __init__(self, process: LoopbackProcess, phase: str) -> None:
        self.process, self.at = process, phase
        self.killed = False

    def phase(self, event: MoveEvent) -> None:
        if event.phase == self.at and not event.ended and not self.killed:
            self.killed = True
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def url(process: LoopbackProcess, name: str) -> str:
    return f"loopback://127.0.0.1:{process.port}?name={name}"


async def weights_of(fleet: Fleet, name: str) -> str | None:
    seen = await fleet[name].adapter.observe(frozenset({"contents"}), deadline_s=5.0)
    label: str | None = seen.weights_label
    return label


@pytest.mark.parametrize("phase", ["drain", pytest.param("release", marks=pytest.mark.slow)])
async def test_the_training_step_goes_on_and_the_killed_one_comes_home(
    start: Start, policy: Policy, step_1: FromDisk, phase: str, report: Callable[[str], None]
) -> None:
    processes = {name: start() for name in "abc"}
    kills, router = Kills(processes["a"], phase), ScriptedRouter()
    policy = replace(policy, on_failure="quarantine")
    urls = [url(process, name) for name, process in processes.items()]
    async with Fleet.connect(urls, policy=policy, router=router, observers=[kills], lease=None) as fleet:
        async with fleet.offloaded(weights=step_1) as released:
            assert kills.killed
            assert [each.engine for each in released] == ["b", "c"]
            assert fleet["a"].state is State.GONE
            assert all(fleet[name].memory_is_free for name in "abc")
            async with training(3 * (128 + 80)) as trainer:
                assert trainer.pss_bytes > 0
        assert list(fleet.quarantined) == ["a"]
        assert router.closed == {"a"}
        for name in "bc":
            assert fleet[name].state is State.SERVING
            assert await weights_of(fleet, name) == "step-1"
        start(port=processes["a"].port)
        with pytest.raises(FleetError, match="it is in quarantine, and it lives, and it is on host:"):
            await fleet.offload(weights=step_1)
        assert {fleet[name].state for name in "bc"} == {State.SERVING}
        found = await fleet.recover(to="serving")
        assert found["a"].state is State.SERVING, found["a"]
        assert await weights_of(fleet, "a") == "step-1"
        assert (fleet.quarantined, router.closed) == ({}, set())
        assert len(await fleet.offload(weights=step_1)) == 3
        await fleet.onload()
    report(f"one of three killed in {phase}: two released and serving again, the third home by recover()")


async def test_one_that_is_killed_on_the_way_back_is_left_behind(
    start: Start, policy: Policy, step_1: FromDisk
) -> None:
    processes = {name: start() for name in "abc"}
    kills = Kills(processes["a"], "restore_weights")
    policy = replace(policy, on_failure="quarantine")
    urls = [url(process, name) for name, process in processes.items()]
    async with Fleet.connect(urls, policy=policy, observers=[kills], lease=None) as fleet:
        async with fleet.offloaded(weights=step_1) as released:
            assert len(released) == 3
        assert {name: str(fleet[name].state) for name in "abc"} == {"a": "gone", "b": "serving", "c": "serving"}
        assert list(fleet.quarantined) == ["a"]


@pytest.mark.slow
async def test_one_that_hangs_shares_the_host_and_is_not_left_behind(
    start: Start, policy: Policy, step_1: FromDisk
) -> None:
    processes = {"a": start(faults=["release=hang"]), "b": start(), "c": start()}
    deadlines_s = {**policy.deadlines_s, "release": 2.0}
    policy = replace(policy, on_failure="quarantine", deadlines_s=deadlines_s)
    urls = [url(process, name) for name, process in processes.items()]
    async with Fleet.connect(urls, policy=policy, router=ScriptedRouter(), lease=None) as fleet:
        with pytest.raises(FleetError, match="It is not put in quarantine: it lives, and it is on host:"):
            await fleet.offload(weights=step_1)
        assert {fleet[name].state for name in "bc"} == {State.SERVING}
        assert fleet.quarantined == {}
