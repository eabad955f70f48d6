"""Engines that report falsely, leak, hang or exit: each is detected and named, and the others serve again."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from engines import KillAt, Recorder, generate, url

from lifecycle import (
    DeadlineExceeded,
    Fleet,
    FleetError,
    FromDisk,
    GuardRefused,
    NotProved,
    Policy,
    Refuted,
    Rejected,
    State,
    Unreachable,
)


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "returned_mib"), [("release=keep", 0), ("release=leak:40", 112)])
async def test_memory_that_does_not_come_back(
    start, checkpoint: Path, policy: Policy, fault: str, returned_mib: int
) -> None:
    faulty, sound = start(faults=[fault]), start()
    policy = replace(policy, deadlines_s={**policy.deadlines_s, "release": 2.0})
    async with Fleet.connect([url(faulty, name="faulty"), url(sound, name="sound")], policy=policy) as fleet:
        with pytest.raises(FleetError) as failed:
            await fleet.offload(weights=FromDisk(str(checkpoint), "step-2"))
        (error,) = failed.value.exceptions
        assert isinstance(error, NotProved)
        verdict = error.verdicts["memory_returned"]
        assert isinstance(verdict, Refuted)
        assert verdict.figures["returned_bytes"] == pytest.approx(returned_mib << 20, abs=12 << 20)
        assert faulty.pid in verdict.figures["pids"]
        assert str(faulty.pid) in str(error)
        assert "MiB" in str(error)
        assert error.settled is State.RELEASED
        assert isinstance(fleet["faulty"].conditions["memory_returned"].verdict, Refuted)
        assert not fleet["faulty"].memory_is_free
        assert fleet["sound"].state is State.SERVING
        assert [record.engine for record in failed.value.succeeded] == ["sound"]
        await fleet.onload()
        assert [engine.state for engine in fleet] == [State.SERVING, State.SERVING]
    assert generate(faulty, "hello") == generate(sound, "hello")


async def test_memory_that_comes_back_late_is_waited_for(start, checkpoint: Path, policy: Policy) -> None:
    process = start(faults=["release=late:0.7"])
    async with Fleet.connect([url(process)], policy=policy) as fleet:
        (record,) = await fleet.offload(weights=FromDisk(str(checkpoint), "step-2"))
        assert record.duration_s > 0.7


async def test_without_its_memory_saver_nothing_is_sent(start, checkpoint: Path, policy: Policy) -> None:
    plain, saver = start(memory_saver=False), start()
    recorder = Recorder()
    urls = [url(plain, name="plain"), url(saver, name="saver")]
    async with Fleet.connect(urls, policy=policy, observers=[recorder]) as fleet:
        with pytest.raises(FleetError, match="memory_saver_enabled") as refused:
            await fleet.offload(weights=FromDisk(str(checkpoint), "step-2"))
        (error,) = refused.value.exceptions
        assert isinstance(error, GuardRefused)
        assert error.engine == "plain"
        assert "start it with --enable-memory-saver" in str(error)
        assert recorder.calls == []
        assert [engine.state for engine in fleet] == [State.SERVING, State.SERVING]


PHASES = {
    State.PAUSING: "pause",
    State.DRAINING: "drain",
    State.RELEASING: "release",
    State.RESTORING_WEIGHTS: "restore_weights",
    State.UPDATING_WEIGHTS: "update_weights",
    State.RESTORING_KV: "restore_kv",
    State.RESUMING: "resume",
}


@pytest.mark.slow
@pytest.mark.parametrize("state", PHASES, ids=PHASES.values())
async def test_an_engine_killed_in_a_phase_is_named_and_the_others_serve(
    start, checkpoint: Path, policy: Policy, state: State
) -> None:
    victim, other = start(), start()
    kill = KillAt(state, "victim", victim)
    urls = [url(victim, name="victim"), url(other, name="other")]
    async with Fleet.connect(urls, policy=policy, observers=[kill]) as fleet:
        begun = time.monotonic()
        with pytest.raises(FleetError) as failed:
            async with fleet.offloaded(weights=FromDisk(str(checkpoint), "step-2")):
                pass
        assert kill.killed
        assert time.monotonic() - begun < sum(policy.deadlines_s.values())
        errors = [error for error in failed.value.exceptions if getattr(error, "engine", "") == "victim"]
        assert errors, failed.value
        assert errors[0].command == PHASES[state]
        assert errors[0].settled is State.GONE
        assert fleet["victim"].state is State.GONE
        assert fleet["victim"].memory_is_free
        assert fleet["other"].state is State.SERVING
    assert generate(other, "hello")


@pytest.mark.slow
async def test_a_dead_rank_takes_the_engine_with_it(start, checkpoint: Path, policy: Policy) -> None:
    process = start(ranks=2)
    async with Fleet.connect([url(process, name="e")], policy=policy) as fleet:
        await fleet.pause()
        os.kill(process.rank_pids[1], 9)
        process.wait(10)
        with pytest.raises(FleetError) as failed:
            await fleet.drain()
        (error,) = failed.value.exceptions
        assert isinstance(error, Unreachable)
        assert error.settled is State.GONE


HANGS = {
    "pause": ("pause", State.SERVING),
    "flush": ("drain", State.DRAINED),
    "release": ("release", State.DRAINED),
}


@pytest.mark.slow
@pytest.mark.parametrize("call", HANGS)
async def test_a_call_that_hangs_ends_within_the_deadline(start, checkpoint: Path, policy: Policy, call: str) -> None:
    process = start(faults=[f"{call}=hang"])
    command, settled = HANGS[call]
    policy = replace(policy, deadlines_s={**policy.deadlines_s, command: 1.5}, on_failure="hold")
    async with Fleet.connect([url(process, name="e")], policy=policy) as fleet:
        begun = time.monotonic()
        with pytest.raises(FleetError) as failed:
            await fleet.offload(weights=FromDisk(str(checkpoint), "step-2"))
        assert time.monotonic() - begun < 1.5 + 1.5
        (error,) = failed.value.exceptions
        assert isinstance(error, DeadlineExceeded | NotProved)
        assert error.command == command
        assert error.settled is settled


async def test_a_lost_answer_to_a_release_is_decided_by_the_bytes(start, checkpoint: Path, policy: Policy) -> None:
    process = start(faults=["release=lost"])
    async with Fleet.connect([url(process, name="e")], policy=policy) as fleet:
        engine = fleet["e"]
        await engine.pause()
        await engine.drain()
        with pytest.raises(Unreachable) as lost:
            await engine.release(["kv_cache"])
        assert engine.facts.mapped == {"weights": True, "kv_cache": False}
        assert lost.value.settled is State.WEIGHTS_RESTORED, "a KV-only release has these facts"
        await engine.restore_kv()
        await engine.resume()
    assert generate(process, "hello")


async def test_an_error_answer_is_quoted_and_settled(start, checkpoint: Path, policy: Policy) -> None:
    process = start(faults=["pause=error:503"])
    async with Fleet.connect([url(process, name="e")], policy=policy) as fleet:
        with pytest.raises(Rejected) as rejected:
            await fleet["e"].pause()
        assert rejected.value.status == 503
        assert rejected.value.settled is State.SERVING


async def test_a_continue_sent_by_another_client_is_noticed(start, checkpoint: Path, policy: Policy) -> None:
    from engines import post

    process = start()
    async with Fleet.connect([url(process, name="e")], policy=policy) as fleet:
        engine = fleet["e"]
        await engine.pause()
        await engine.drain()
        post(process, "/continue_generation", {})
        with pytest.raises(Unreachable, match="externally modified"):
            await engine.release(weights=FromDisk(str(checkpoint), "step-2"))
        assert engine.state is State.PAUSED, "whoever opened it may have restored it, with other weights"
        await fleet.onload(weights=FromDisk(str(checkpoint), "step-2"))
        assert engine.state is State.SERVING


@pytest.mark.slow
async def test_a_restarted_engine_is_another_one(start, checkpoint: Path, policy: Policy) -> None:
    process = start()
    async with Fleet.connect([url(process, name="e")], policy=policy) as fleet:
        engine = fleet["e"]
        await engine.pause()
        await engine.drain()
        process.kill()
        again = start(port=process.port)
        with pytest.raises(Unreachable, match="another process"):
            await engine.release(weights=FromDisk(str(checkpoint), "step-2"))
        assert engine.state is State.PAUSED, "its weights are not this fleet's, so it was closed"
        assert engine.weights_refusal() is not None
        await engine.drain()
        await engine.update_weights(FromDisk(str(checkpoint), "step-2"))
        await engine.resume()
        async with fleet.offloaded() as (released,):
            assert released.returned_bytes is not None, "the memory of the new process is what is measured"
    assert generate(again, "hello")
