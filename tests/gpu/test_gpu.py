"""Residual memory on a real GPU: every figure is compared with nvidia-smi, and the hook mode's guard is asked."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import gpu_record
import pytest

from lifecycle.core.capabilities import Capabilities
from lifecycle.core.commands import Release
from lifecycle.core.facts import Fact, Facts, Grade, TagSpec
from lifecycle.core.policy import Policy
from lifecycle.core.readings import Reading
from lifecycle.core.record import Record
from lifecycle.core.units import GIB, MIB
from lifecycle.core.verdicts import Pending, Proved, Refuted, Unmeasurable
from lifecycle.engine.headroom import judge
from lifecycle.nodes.cuda_wheel import cuda_of_process, installed_cuda
from lifecycle.nodes.driver import driver
from lifecycle.nodes.hook_mode import require_safe_hook_mode, visible_gpus
from lifecycle.nodes.nvml import NvmlProbe
from lifecycle.nodes.process_env import hook_mode_verdict
from lifecycle.nodes.processes import by_pid
from lifecycle.nodes.this_host import ThisHost
from lifecycle.rules.evidence import Context, Evidence
from lifecycle.rules.proofs import memory_returned

Hold = Callable[..., Any]
SMI_APPS = ["nvidia-smi", "--query-compute-apps=pid,used_gpu_memory", "--format=csv,noheader,nounits"]
SMI_GPUS = ["nvidia-smi", "--query-gpu=memory.used,memory.free", "--format=csv,noheader,nounits"]


def smi(command: list[str]) -> list[list[int]]:
    """The rows of numbers that nvidia-smi prints."""
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [[int(cell) for cell in row.split(",")] for row in printed.strip().splitlines()]


def read(*pids: int, scope: Any = "process") -> Reading | Unmeasurable:
    return NvmlProbe(scope=scope).read_now([by_pid(pid) for pid in pids])


def reading(*pids: int) -> Reading:
    found = read(*pids)
    assert isinstance(found, Reading), found
    return found


def test_only_a_grandchild_holds_memory(hold: Hold, report: Any) -> None:
    family = hold(depth=2)
    family.command("alloc 1024")
    found = reading(family.pid)
    assert family.pid != family.holder
    assert [holder.pid for holder in found.holders] == [family.holder]
    shown = dict(smi(SMI_APPS))
    assert family.pid not in shown
    assert found.resident_bytes // MIB == shown[family.holder]
    report.add(
        "grandchild",
        probe_bytes=found.resident_bytes,
        probe_mib=found.resident_bytes / MIB,
        smi_mib=shown[family.holder],
    )
    report.answers["grandchild"] = {"holder": family.holder, "answers": gpu_record.answers()}


def test_two_processes_on_one_device(hold: Hold, report: Any) -> None:
    one, two = hold(), hold(depth=1)
    one.command("alloc 512")
    two.command("alloc 1536")
    first, second = reading(one.pid), reading(two.pid)
    shown = dict(smi(SMI_APPS))
    assert first.resident_bytes // MIB == shown[one.holder]
    assert second.resident_bytes // MIB == shown[two.holder]
    both = reading(one.pid, two.pid)
    assert both.resident_bytes == first.resident_bytes + second.resident_bytes, "summed inside a device"
    (device,) = both.devices
    used, free = smi(SMI_GPUS)[0]
    assert both.whole[device] // MIB == pytest.approx(used, abs=2)
    whole = read(one.pid, scope="device")
    assert isinstance(whole, Reading)
    assert whole.resident_bytes // MIB == pytest.approx(used, abs=2)
    report.add(
        "two processes",
        probe_mib=[first.resident_bytes / MIB, second.resident_bytes / MIB],
        smi_mib=[shown[one.holder], shown[two.holder]],
        device_used_mib=both.whole[device] / MIB,
        smi_device_used_mib=used,
        smi_device_free_mib=free,
    )
    report.answers["two processes"] = {"holders": [one.holder, two.holder], "answers": gpu_record.answers()}


def verdict(before: Reading, after: Reading, threshold_bytes: int, expected_mib: int) -> Any:
    facts = Facts().learn({Fact.MAPPED: {"kv_cache": False}}, Grade.ACKNOWLEDGED)
    tag = TagSpec("kv_cache", "kv", "discarded", expected_mib * MIB)
    context = Context(
        command=Release(),
        record=Record(facts=facts),
        capabilities=Capabilities("a test", "1", (tag,), {}),
        policy=Policy(residual_threshold_gib=threshold_bytes / GIB),
        targets=frozenset({"kv_cache"}),
        baseline=Evidence(residual=before),
        evidence=Evidence(residual=after),
    )
    return memory_returned(context)


def test_threshold_passed_met_and_exceeded(hold: Hold, report: Any) -> None:
    holding = hold()
    holding.command("alloc 2048")
    before = reading(holding.pid)
    holding.command("free")
    after = reading(holding.pid)
    left = after.resident_bytes
    assert isinstance(verdict(before, after, left + MIB, 2048), Proved)
    assert isinstance(verdict(before, after, left, 2048), Proved), "equality passes"
    exceeded = verdict(before, after, left - 1, 2048)
    assert isinstance(exceeded, Pending)
    assert str(holding.holder) in exceeded.reason
    kept = verdict(before, before, 80 * GIB, 2048)
    assert isinstance(kept, Pending), "nothing came back, whatever the threshold"
    returned = before.resident_bytes - left
    assert returned == 2048 * MIB
    report.add(
        "threshold",
        before_mib=before.resident_bytes / MIB,
        after_mib=left / MIB,
        returned_mib=returned / MIB,
        context_alone_mib=left / MIB,
        exceeded=exceeded.reason.replace(str(holding.holder), "PID"),
    )


def test_a_process_that_exits(hold: Hold, report: Any) -> None:
    holding = hold(depth=1)
    process = by_pid(holding.pid)
    os.kill(holding.holder, 9)
    begun = time.monotonic()
    while isinstance(found := NvmlProbe().read_now([process]), Reading) and time.monotonic() - begun < 10:
        time.sleep(0.001)
    assert isinstance(found, Unmeasurable), "never 0"
    gone_ms = (time.monotonic() - begun) * 1000
    holding.end()
    assert "no process of the engine is left" in NvmlProbe().read_now([process]).reason
    report.add("exit", not_listed_after_ms=round(gone_ms, 2), said=found.reason)


async def test_room_names_who_holds_the_rest(hold: Hold, report: Any) -> None:
    engine, trainer = hold(), hold()
    trainer.command("alloc 4096")
    uuid = next(iter(reading(engine.pid).devices))
    host = ThisHost()
    free = await host.free_memory([uuid], [by_pid(engine.pid)], need_bytes=1 << 50, deadline_s=10)
    assert not isinstance(free, Unmeasurable)
    shown = smi(SMI_GPUS)[0][1]
    assert free[uuid].free_bytes // MIB == pytest.approx(shown, abs=2)
    short = judge(1 << 50, free, "weights")
    assert isinstance(short, Refuted)
    assert f"pid {trainer.holder}" in short.reason
    assert f"pid {engine.holder}" not in short.reason
    assert isinstance(judge(GIB, free, "weights"), Proved)
    report.add("room", free_mib=free[uuid].free_bytes / MIB, smi_free_mib=shown)


async def test_the_time_of_one_query(hold: Hold, report: Any) -> None:
    holding = hold(depth=2)
    process = by_pid(holding.pid)

    def took_ms(ask: Callable[[], object], times: int) -> list[float]:
        spent = []
        for _ in range(times):
            begun = time.perf_counter()
            ask()
            spent.append((time.perf_counter() - begun) * 1000)
        return spent

    driver().snapshot()
    asked = took_ms(driver().snapshot, 50)
    whole = took_ms(lambda: NvmlProbe().read_now([process]), 20)
    called = took_ms(lambda: smi(SMI_APPS), 5)
    begun = time.perf_counter()
    await NvmlProbe().read([process], deadline_s=10)
    off_loop_ms = (time.perf_counter() - begun) * 1000
    assert statistics.median(whole) < statistics.median(called)
    report.add(
        "time",
        driver_ms=round(statistics.median(asked), 3),
        driver_worst_ms=round(max(asked), 3),
        probe_with_tree_ms=round(statistics.median(whole), 3),
        probe_off_loop_ms=round(off_loop_ms, 3),
        nvidia_smi_ms=round(statistics.median(called), 1),
    )


@pytest.mark.parametrize("mode", ["preload", None, "torch"])
def test_the_hook_mode_guard_is_silent_before_blackwell(mode: str | None, report: Any) -> None:
    gpus = visible_gpus({})
    assert not isinstance(gpus, Unmeasurable)
    assert gpus
    if any(gpu.blackwell for gpu in gpus):
        pytest.skip("this is a Blackwell device or later")
    require_safe_hook_mode({} if mode is None else {"MILES_TMS_HOOK_MODE": mode})
    report.add("hook mode", **{mode or "unset": "passes", "gpus": [str(gpu) for gpu in gpus]})


def test_the_wheel_of_a_running_process(report: Any) -> None:
    pytest.importorskip("torch")
    code = "import sys, torch; torch.cuda.init(); print(torch.version.cuda, flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        said = child.stdout.readline().strip()
        assert cuda_of_process(child.pid) == said == installed_cuda()
        safe = hook_mode_verdict([by_pid(child.pid)])
        assert isinstance(safe, Proved)
        report.add("wheel", torch_says=said, process_maps_say=cuda_of_process(child.pid), verdict=str(safe))
    finally:
        child.communicate(timeout=30)
