"""A real server whose memory is on a stand-in device: NVML, hook mode and headroom, from the driver to the verdict."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from on_a_card import CONTEXT, KV, TRAINER, WEIGHTS, Card, OnGpu, disk
from stand_in_nvml import GIB

from lifecycle import ConfigurationError, Engine, Grade, GuardRefused, NotProved, Policy, State
from lifecycle.core.verdicts import Unmeasurable
from lifecycle.nodes import nvml, this_host
from lifecycle.nodes.address import parse
from lifecycle.nodes.driver import NvmlDriver
from lifecycle.nodes.process_env import process_env
from lifecycle.nodes.process_memory import read_trees
from lifecycle.nodes.processes import by_pid


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts an engine on a stand-in card, with these variables in its environment, and drains it."""
    with ExitStack() as stack:

        async def start(
            *, policy: Policy | None = None, environ: dict[str, str] | None = None, release_s: float = 2.0, **card: Any
        ) -> tuple[Engine, Card, LoopbackProcess]:
            for name, value in (environ or {}).items():
                monkeypatch.setenv(name, value)
            process = stack.enter_context(LoopbackProcess.start(weights_mib=16, kv_mib=16))
            for name in environ or {}:
                monkeypatch.delenv(name)
            on = Card(process.pid, **card)
            driver = NvmlDriver(on.nvml)
            monkeypatch.setattr(this_host, "driver", lambda: driver)
            monkeypatch.setattr(nvml, "driver", lambda: driver)
            deadlines = {"release": release_s}
            policy = replace(policy or Policy(), deadlines_s=deadlines, settle_s=0.5, poll_s=0.05, room_wait_s=0.2)
            engine = Engine(
                OnGpu(parse(f"loopback://127.0.0.1:{process.port}")), name="e", policy=policy, observers=[on]
            )
            try:
                await engine.connect()
            except ConfigurationError:
                await engine.aclose()
                raise
            await engine.pause()
            await engine.drain()
            return engine, on, process

        yield start


async def test_the_ring_on_a_gpu(begin: Any) -> None:
    engine, card, process = await begin()
    record = await engine.release(weights=disk(process))
    assert record.returned_bytes == WEIGHTS + KV
    figures = record.verdicts["memory_returned"].figures
    assert figures["resident_bytes"] == CONTEXT
    assert figures["device_used_bytes"] == {card.record["uuid"]: CONTEXT}
    assert record.verdicts["memory_returned"].grade is Grade.MEASURED
    assert engine.memory_is_free
    await engine.restore_weights()
    await engine.update_weights(disk(process))
    await engine.restore_kv()
    await engine.resume()
    assert engine.state is State.SERVING
    await engine.aclose()


@pytest.mark.parametrize(("leak", "passes"), [(0, True), (3 * GIB - CONTEXT, True), (3 * GIB - CONTEXT + 1, False)])
async def test_the_threshold_passed_met_and_exceeded(begin: Any, leak: int, passes: bool) -> None:
    engine, _, process = await begin(leak=leak)
    if passes:
        await engine.release(weights=disk(process))
    else:
        with pytest.raises(NotProved, match="exceeds 3072 MiB allowed"):
            await engine.release(weights=disk(process))
    await engine.aclose()


async def test_the_whole_device_as_the_gate_counts_the_trainer(begin: Any) -> None:
    engine, card, process = await begin(policy=Policy(residual_scope="device", residual_threshold_gib=7.0))
    card.join(TRAINER, 6 * GIB)
    with pytest.raises(NotProved) as refused:
        await engine.release(weights=disk(process))
    assert f"pid {TRAINER}" in str(refused.value)
    await engine.aclose()


async def test_preload_on_blackwell_refuses_the_release_and_touches_nothing(begin: Any) -> None:
    engine, card, process = await begin(name="NVIDIA B200", capability=[10, 0])
    held = card.entry["used"]
    with pytest.raises(GuardRefused) as refused:
        await engine.release(weights=disk(process))
    reason = refused.value.reasons["hook_mode_safe"]
    assert "NVIDIA B200 (sm_100)" in reason
    assert "CUDA unknown" in reason
    assert "MILES_TMS_HOOK_MODE is unset" in reason
    assert card.entry["used"] == held
    assert engine.state is State.DRAINED
    await engine.aclose()


@pytest.mark.parametrize(
    "environ",
    [
        {"MILES_TMS_HOOK_MODE": "torch"},
        {"LIFECYCLE_HOOK_MODE": "auto"},
        {"MILES_TMS_ALLOW_PRELOAD_ON_BLACKWELL": "1"},
        {"CUDA_VISIBLE_DEVICES": ""},
    ],
)
async def test_the_hook_mode_is_that_of_the_engine_not_of_this_process(
    begin: Any, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    engine, _, process = await begin(environ=environ, name="NVIDIA B200", capability=[10, 0])
    monkeypatch.setenv("MILES_TMS_HOOK_MODE", "preload")
    await engine.release(weights=disk(process))
    await engine.aclose()


async def test_a_trainer_that_holds_the_memory_is_named_before_anything_is_mapped(begin: Any) -> None:
    engine, card, process = await begin()
    await engine.release(weights=disk(process))
    card.join(TRAINER, 70 * GIB)
    with pytest.raises(GuardRefused) as refused:
        await engine.restore_weights()
    reason = refused.value.reasons["device_has_room"]
    assert f"pid {TRAINER} (not visible from here) holds {70 * 1024} MiB" in reason
    assert f"weights need {16 * 1024} MiB" in reason
    assert engine.state is State.RELEASED
    card.record["compute"].pop()
    card.fill()
    await engine.restore_weights()
    await engine.update_weights(disk(process))
    card.join(TRAINER, 30 * GIB)
    with pytest.raises(GuardRefused, match="kv_cache need 40960 MiB"):
        await engine.restore_kv()
    assert engine.state is State.WEIGHTS_RESTORED
    await engine.aclose()


async def test_a_shortage_stays_refuted_when_the_driver_stops_answering(
    begin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, card, process = await begin()
    await engine.release(weights=disk(process))
    card.join(TRAINER, 70 * GIB)
    free_memory, deadlines = this_host.ThisHost.free_memory, []

    async def once(*args: Any, **how: Any) -> Any:
        deadlines.append(how["deadline_s"])
        return await free_memory(*args, **how) if len(deadlines) == 1 else Unmeasurable(reason="no answer")

    monkeypatch.setattr(this_host.ThisHost, "free_memory", once)
    with pytest.raises(GuardRefused, match=f"pid {TRAINER}"):
        await engine.restore_weights()
    assert len(deadlines) == 2
    assert deadlines[0] > 10, "the driver is given time to answer, however short the wait for headroom"
    await engine.aclose()


async def test_an_engine_that_the_driver_does_not_show_is_refused_at_connect(begin: Any) -> None:
    with pytest.raises(ConfigurationError, match="memory_returned cannot be measured: none of pids"):
        await begin(compute=[])


async def test_figures_that_fall_late_are_polled_for(begin: Any) -> None:
    engine, card, process = await begin(leak=20 * GIB, release_s=20.0)
    entry, calls = card.entry, card.nvml.calls

    class Later(dict):  # type: ignore[type-arg]
        def __getitem__(self, key: str) -> Any:
            late = key == "used" and entry["used"] == CONTEXT + 20 * GIB and len(calls) > 40
            return CONTEXT if late else entry[key]

    card.record["compute"][0] = Later()
    record = await engine.release(weights=disk(process))
    assert record.verdicts["memory_returned"].figures["resident_bytes"] == CONTEXT
    await engine.aclose()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("measure", [read_trees, process_env])
def test_a_pid_of_another_user_is_unmeasurable_and_says_so(measure: Any) -> None:
    mine = by_pid(os.getpid())
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.setuid(65534)
        found = measure([mine])
        os.write(writer, (found.reason if isinstance(found, Unmeasurable) else "measured").encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    said = os.read(reader, 1000).decode()
    os.close(reader)
    assert re.fullmatch(r"pid \d+ belongs to another user; run as that user or as root", said)
