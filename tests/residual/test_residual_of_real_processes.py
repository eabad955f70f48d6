"""Real engines that report a memory saver, answer 200 and give nothing back, or not all: refuted by what they hold."""

from __future__ import annotations

import asyncio
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess, make_weights

from lifecycle import (
    BaseObserver,
    Call,
    Condition,
    Engine,
    FromDisk,
    Grade,
    GuardRefused,
    Kept,
    NotProved,
    Policy,
    Proved,
    Refuted,
    Reply,
    State,
    Unmeasurable,
)
from lifecycle.fleet.registry import adapter_for
from lifecycle.nodes import this_host
from lifecycle.nodes.address import parse
from lifecycle.nodes.process_memory import ProcessMemoryProbe
from lifecycle.nodes.processes import by_pid

pytestmark = pytest.mark.slow

MIB = 1 << 20
WEIGHTS_MIB, KV_MIB = 768, 192

#: Of 96 MiB: as they were measured, and the part of shared libraries that counts depends on who else uses them.
NEEDS = r"{} need 9\d MiB"


@pytest.fixture
def start() -> Iterator[Any]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(LoopbackProcess.start(**options))


async def drained(process: LoopbackProcess, policy: Policy, **options: Any) -> Engine:
    """An engine that is about to be released."""
    engine = Engine(adapter_for(parse(f"loopback://127.0.0.1:{process.port}")), name="e", policy=policy, **options)
    await engine.connect()
    await engine.pause()
    await engine.drain()
    return engine


def policy(threshold_gib: float, **changes: Any) -> Policy:
    deadlines = {"release": 2.5, "drain": 10.0}
    return Policy(residual_threshold_gib=threshold_gib, deadlines_s=deadlines, settle_s=1.0, poll_s=0.05, **changes)


DISK = FromDisk("/nowhere", "step-2")
NOT_YET = Condition(Proved(grade=Grade.MEASURED))


@pytest.mark.parametrize("threshold_gib", [0.25, 3.0])
@pytest.mark.parametrize(
    ("fault", "kept_mib"), [("release=keep", WEIGHTS_MIB + KV_MIB), ("release=leak:512", 512 + KV_MIB)]
)
async def test_memory_that_stays_is_refuted_at_any_threshold(
    start: Any, fault: str, kept_mib: int, threshold_gib: float
) -> None:
    """At 3.0 GiB the engine is far below the threshold before and after: only what came back tells."""
    process = start(weights_mib=WEIGHTS_MIB, kv_mib=KV_MIB, faults=[fault])
    engine = await drained(process, policy(threshold_gib))
    try:
        assert engine.capabilities.memory_saver is True
        with pytest.raises(NotProved) as refused:
            await engine.release(weights=DISK)
        verdict = refused.value.verdicts["memory_returned"]
        assert isinstance(verdict, Refuted)
        expected = sum(spec.expected_bytes or 0 for spec in engine.capabilities.tags)
        returned = (WEIGHTS_MIB + KV_MIB - kept_mib) * MIB
        assert verdict.figures["returned_bytes"] == pytest.approx(returned, abs=16 * MIB)
        assert verdict.figures["resident_bytes"] > kept_mib * MIB
        message = str(refused.value)
        assert f"threshold {round(threshold_gib * 1024)} MiB" in message
        assert f"pid {process.pid}" in message
        assert f"of {round(expected / MIB)} MiB expected" in message
        assert f"{round(verdict.figures['resident_bytes'] / MIB)} MiB resident" in message
        assert refused.value.settled is State.RELEASED
        assert not engine.memory_is_free
    finally:
        await engine.aclose()


class KeepsFirstRelease(BaseObserver):
    """The engine keeps the tags of the first release call and returns those of the second."""

    def __init__(self, process: LoopbackProcess) -> None:
        self._url = f"{process.url}/_fault"
        self.set("keep")

    def call(self, engine: str, call: Call, reply: Reply, duration_s: float) -> None:
        """After the KV cache, releases return memory again."""
        if call.name == "release_memory_occupation":
            self.set(None)

    def set(self, fault: str | None) -> None:
        body = f'{{"release": {"null" if fault is None else chr(34) + fault + chr(34)}}}'.encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"}, method="POST")
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read()


async def test_the_tag_that_stayed_is_named(start: Any) -> None:
    process = start(weights_mib=WEIGHTS_MIB, kv_mib=KV_MIB, allow_faults=True)
    engine = await drained(process, policy(3.0), observers=[KeepsFirstRelease(process)])
    try:
        with pytest.raises(NotProved) as refused:
            await engine.release(weights=DISK)
        verdict = refused.value.verdicts["memory_returned"]
        assert verdict.figures["returned_bytes"] == pytest.approx(WEIGHTS_MIB * MIB, abs=16 * MIB)
        assert "what is missing is the size of kv_cache" in str(refused.value)
    finally:
        await engine.aclose()


async def test_the_memory_of_two_ranks_is_found_in_the_children_and_a_dead_rank_is_seen(start: Any) -> None:
    process = start(weights_mib=192, kv_mib=192, ranks=2)
    probe = ProcessMemoryProbe()
    reading = await probe.read([by_pid(process.pid)], deadline_s=5)
    held = {holder.pid: holder.resident_bytes for holder in reading.holders}
    assert set(process.rank_pids) < set(held)
    assert process.pid not in process.rank_pids
    assert sum(held[pid] for pid in process.rank_pids) > 384 * MIB
    assert held[process.pid] < 128 * MIB, "the spawning parent holds none of it"
    root = by_pid(process.pid)
    engine = await drained(process, policy(0.25))
    os.kill(process.rank_pids[1], 9)
    process.wait(10)
    gone = await probe.read([root], deadline_s=5)
    assert isinstance(gone, Unmeasurable)
    assert "no process of the engine is left" in gone.reason
    assert await engine.verify() is State.GONE
    await engine.aclose()


async def test_restoring_without_headroom_is_refused_and_names_the_holders(start: Any, monkeypatch: Any) -> None:
    process = start(weights_mib=96, kv_mib=96)
    engine = await drained(process, policy(0.25, room_wait_s=0.3))
    try:
        await engine.release(weights=DISK)
        monkeypatch.setattr(this_host, "available_bytes", lambda: 40 * MIB)
        begun = time.monotonic()
        with pytest.raises(GuardRefused) as refused:
            await engine.restore_weights()
        assert 0.3 <= time.monotonic() - begun < 3, "it was waited for"
        reason = refused.value.reasons["device_has_room"]
        assert re.search(NEEDS.format("weights"), reason)
        assert "pid " in reason
        assert str(process.pid) not in reason, "its own memory is no obstacle to it"
        assert engine.state is State.RELEASED
        monkeypatch.undo()
        await engine.restore_weights()
        assert engine.state is State.WEIGHTS_RESTORED
    finally:
        await engine.aclose()


async def test_headroom_that_comes_late_is_waited_for(start: Any, monkeypatch: Any) -> None:
    process = start(weights_mib=96, kv_mib=96)
    engine = await drained(process, policy(0.25))
    try:
        await engine.release(weights=DISK)
        begun = time.monotonic()
        monkeypatch.setattr(this_host, "available_bytes", lambda: 0 if time.monotonic() - begun < 0.5 else 1 << 40)
        record = await engine.restore_weights()
        assert record.duration_s > 0.5
    finally:
        await engine.aclose()


async def test_a_backup_needs_headroom_on_the_host(start: Any, monkeypatch: Any) -> None:
    process = start(weights_mib=96, kv_mib=96, weights_backup=True)
    engine = await drained(process, policy(3.0))
    try:
        monkeypatch.setattr(this_host, "available_bytes", lambda: 40 * MIB)
        with pytest.raises(GuardRefused, match=NEEDS.format("the backup of weights")) as refused:
            await engine.release(weights=Kept())
        assert list(refused.value.reasons) == ["host_has_room"]
        assert engine.state is State.DRAINED
    finally:
        await engine.aclose()


@pytest.mark.parametrize("retained", ["1", "0"])
async def test_a_backup_that_is_kept_between_releases_needs_headroom_once(
    start: Any, monkeypatch: Any, retained: str
) -> None:
    monkeypatch.setenv("TMS_RETAIN_CPU_BACKUP", retained)  # the engine inherits it
    engine = await drained(start(weights_mib=96, kv_mib=96, weights_backup=True), policy(3.0))
    try:
        await engine.release(["weights"], weights=Kept())
        await engine.restore_weights()
        monkeypatch.setattr(this_host, "available_bytes", lambda: 40 * MIB)
        if retained == "1":
            await engine.release(["weights"], weights=Kept())
        else:
            with pytest.raises(GuardRefused, match=NEEDS.format("the backup of weights")):
                await engine.release(["weights"], weights=Kept())
    finally:
        await engine.aclose()


async def test_other_tokens_under_the_same_label_close_the_engine_again(start: Any, tmp_path: Any) -> None:
    other = tmp_path / "other.safetensors"
    make_weights(other, seed=9, weights_mib=96)
    process = start(weights_mib=96, kv_mib=96)
    engine = await drained(process, policy(0.25, canary_tokens=8))
    try:
        await engine.update_weights(FromDisk(str(process.weights), "step-2"))
        await engine.resume()
        await engine.pause()
        await engine.drain()
        await engine.update_weights(FromDisk(str(other), "step-2"), force=True)
        with pytest.raises(NotProved, match="answers otherwise than it did with step-2") as refused:
            await engine.resume()
        assert refused.value.settled in (State.PAUSED, State.DRAINED)
        assert engine.facts.admission == "closed"
        with pytest.raises(urllib.error.HTTPError):
            await asyncio.to_thread(urllib.request.urlopen, f"{process.url}/ready", timeout=10)
        if engine.state is State.PAUSED:
            await engine.drain()
        await engine.update_weights(FromDisk(str(process.weights), "step-2"), force=True)
        await engine.resume()
        assert engine.state is State.SERVING
    finally:
        await engine.aclose()


async def test_growth_over_real_cycles_raises_the_condition_before_the_threshold(
    start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Each release leaks more than the last, and each still returns enough to be proved."""
    process = start(weights_mib=WEIGHTS_MIB, kv_mib=KV_MIB, allow_faults=True)
    engine = await drained(process, policy(3.0, returned_fraction=0.5))
    faults = KeepsFirstRelease(process)
    try:
        for leak_mib in (1, 60, 120):
            faults.set(f"leak:{leak_mib}")
            assert isinstance(engine.conditions.get("residual_slope", NOT_YET).verdict, Proved)
            await engine.release(weights=FromDisk(str(process.weights), "step-2"))
            await engine.restore_weights()
            await engine.update_weights(FromDisk(str(process.weights), "step-2"))
            await engine.restore_kv()
        verdict = engine.conditions["residual_slope"].verdict
        assert isinstance(verdict, Refuted)
        assert "grows from cycle to cycle" in verdict.reason
        assert "is passed in" in verdict.reason
        assert verdict.reason in caplog.text
    finally:
        await engine.aclose()
