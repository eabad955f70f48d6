"""GPU memory by process, over a driver that answers from records."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from stand_in_nvml import GIB, StandInNvml, gpu, use

from lifecycle import Process, Unmeasurable
from lifecycle.core.readings import Reading
from lifecycle.nodes.driver import NOT_AVAILABLE, DriverUnavailable, NvmlDriver
from lifecycle.nodes.nvml import SEE_PIDS, NvmlProbe, ProcFs, measure, other_holders
from lifecycle.nodes.processes import by_pid, node_name
from lifecycle.nodes.this_host import ThisHost
from lifecycle.nodes.visible_devices import visible_devices


def proc_fs(known: Mapping[int, tuple[int, ...]]) -> ProcFs:
    """A /proc with these processes: the pid here, and the pids in all namespaces."""
    return ProcFs(lambda pid: known.get(pid, (pid,)), known.__contains__, lambda pid: f"command {pid}")


def read(*gpus: dict[str, Any], pids: set[int], known: Mapping[int, tuple[int, ...]] | None = None, **how: Any) -> Any:
    every_user = {each["pid"]: (each["pid"],) for card in gpus for each in _uses(card)}
    snapshot = NvmlDriver(StandInNvml.of(*gpus)).snapshot()
    return measure(snapshot, frozenset(pids), proc_fs(every_user if known is None else known), **how)


def _uses(card: dict[str, Any]) -> list[dict[str, Any]]:
    own = [each for kind in ("compute", "graphics") for each in (card[kind] if isinstance(card[kind], list) else [])]
    parts = card["mig"]["instances"] if card["mig"] else []
    return own + [each for part in parts for each in part["compute"]]


def test_summed_inside_a_device_and_the_most_over_devices() -> None:
    first = gpu(0, compute=[use(10, 2 * GIB), use(11, 1 * GIB), use(99, 30 * GIB)])
    second = gpu(1, compute=[use(12, 2 * GIB)])
    reading = read(first, second, gpu(2), pids={9, 10, 11, 12})
    assert reading.devices == {first["uuid"]: 3 * GIB, second["uuid"]: 2 * GIB}
    assert reading.resident_bytes == 3 * GIB
    assert {holder.pid for holder in reading.holders} == {10, 11, 12}
    assert "command 10" in str(reading.holders[0])


def test_the_whole_device_is_reported_beside_it() -> None:
    card = gpu(memory={"total": 80 * GIB, "used": 33 * GIB, "free": 47 * GIB}, compute=[use(10, 2 * GIB)])
    assert read(card, pids={10}).whole == {card["uuid"]: 33 * GIB}


def test_the_whole_device_as_the_gate() -> None:
    card = gpu(
        memory={"total": 80 * GIB, "used": 33 * GIB, "free": 47 * GIB}, compute=[use(10, 2 * GIB), use(99, 30 * GIB)]
    )
    elsewhere = gpu(1, memory={"total": 80 * GIB, "used": 70 * GIB, "free": 10 * GIB}, compute=[use(98, 70 * GIB)])
    reading = read(card, elsewhere, pids={10}, scope="device")
    assert reading.devices == {card["uuid"]: 33 * GIB}
    assert [holder.pid for holder in reading.holders] == [99, 10]


def test_a_process_that_computes_and_draws_is_counted_once() -> None:
    card = gpu(compute=[use(10, 2 * GIB)], graphics=[use(10, 2 * GIB), use(11, 1 * GIB)])
    assert read(card, pids={10, 11}).devices == {card["uuid"]: 3 * GIB}


def test_no_process_of_the_engine_is_unmeasurable_never_0() -> None:
    verdict = read(gpu(compute=[use(99, GIB)]), pids={10})
    assert isinstance(verdict, Unmeasurable)
    assert "none of pids 10" in verdict.reason


@pytest.mark.parametrize("unknown", [None, NOT_AVAILABLE])
def test_a_figure_that_the_driver_does_not_give(unknown: int | None) -> None:
    card = gpu(memory={"total": 8 * GIB, "used": 5 * GIB, "free": 3 * GIB}, compute=[use(10, unknown)])
    verdict = read(card, pids={10})
    assert isinstance(verdict, Unmeasurable)
    assert "N/A" in verdict.reason
    assert "residual_scope" in verdict.reason
    assert read(card, pids={10}, scope="device").resident_bytes == 5 * GIB


def test_another_process_without_a_figure_does_not_matter() -> None:
    assert read(gpu(compute=[use(10, GIB), use(99, None)]), pids={10}).resident_bytes == GIB


def test_a_device_that_says_nothing_cannot_be_the_gate() -> None:
    verdict = read(gpu(memory=None, compute=[use(10, GIB)]), pids={10}, scope="device")
    assert isinstance(verdict, Unmeasurable)


def test_pids_hidden_by_a_namespace_are_mapped_through_nspid() -> None:
    card = gpu(compute=[use(17, 2 * GIB), use(4, GIB)])
    reading = read(card, pids={4000}, known={4000: (4000, 17), 5000: (5000, 4)})
    assert reading.devices == {card["uuid"]: 2 * GIB}
    assert reading.holders[0].pid == 4000


def test_a_pid_that_exists_here_is_not_mapped_to_another_process() -> None:
    """17 exists here, so the driver lists that process, not the engine's whose pid in its container is 17."""
    verdict = read(gpu(compute=[use(17, 2 * GIB)]), pids={4000}, known={4000: (4000, 17), 17: (17,)})
    assert isinstance(verdict, Unmeasurable)


def test_host_pids_seen_from_a_container_name_the_setting_that_helps() -> None:
    verdict = read(gpu(compute=[use(31337, 2 * GIB)]), pids={10}, known={10: (10,)})
    assert isinstance(verdict, Unmeasurable)
    assert "31337" in verdict.reason
    assert SEE_PIDS in verdict.reason
    assert "--pid=host" in SEE_PIDS
    assert "hostPID" in SEE_PIDS


def test_a_driver_that_lists_no_process_while_memory_is_used() -> None:
    card = gpu(memory={"total": 80 * GIB, "used": 33 * GIB, "free": 47 * GIB})
    verdict = read(card, pids={10}, known={10: (10,)})
    assert SEE_PIDS in verdict.reason


def test_a_driver_that_does_not_list_processes() -> None:
    verdict = read(gpu(compute=3), pids={10})
    assert isinstance(verdict, Unmeasurable)
    assert "does not list the processes of GPU 0" in verdict.reason


def test_graphics_processes_that_are_not_supported_are_none() -> None:
    assert read(gpu(compute=[use(10, GIB)], graphics=3), pids={10}).resident_bytes == GIB


def instance(name: str, *uses: dict[str, Any]) -> dict[str, Any]:
    return gpu(uuid=f"MIG-{name}", compute=list(uses), memory={"total": 10 * GIB, "used": 6 * GIB, "free": 4 * GIB})


def divided(*instances: dict[str, Any]) -> dict[str, Any]:
    return gpu(0, compute=[use(10, 5 * GIB), use(11, 5 * GIB)], mig={"mode": 1, "instances": list(instances)})


def test_mig_instances_are_devices_of_their_own() -> None:
    card = divided(instance("a", use(10, 2 * GIB)), instance("b", use(11, 3 * GIB)))
    reading = read(card, gpu(1), pids={10, 11})
    assert reading.devices == {"MIG-a": 2 * GIB, "MIG-b": 3 * GIB}
    assert reading.whole == {"MIG-a": 6 * GIB, "MIG-b": 6 * GIB}


def test_a_card_that_could_be_divided_and_is_not() -> None:
    card = gpu(0, compute=[use(10, GIB)], mig={"mode": 0, "instances": []})
    assert read(card, pids={10}).devices == {card["uuid"]: GIB}


def test_other_holders_of_a_device_largest_first() -> None:
    card = gpu(compute=[use(10, GIB), use(98, GIB), use(99, 30 * GIB)])
    snapshot = NvmlDriver(StandInNvml.of(card)).snapshot()
    holders = other_holders(snapshot, card["uuid"], frozenset({10}), proc_fs({10: (10,), 98: (98,), 99: (99,)}))
    assert [holder.pid for holder in holders] == [99, 98]


DEVICES = (
    NvmlDriver(
        StandInNvml.of(gpu(0), gpu(1), divided(instance("a"), instance("b")) | {"uuid": "GPU-2222aaaa", "index": 2})
    )
    .snapshot()
    .devices
)


@pytest.mark.parametrize(
    ("value", "uuids"),
    [
        (None, ["GPU-0000aaaa", "GPU-1111aaaa", "MIG-a", "MIG-b"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", ["GPU-1111aaaa"]),
        ("1,0", ["GPU-1111aaaa", "GPU-0000aaaa"]),
        (" 0 , 1 ", ["GPU-0000aaaa", "GPU-1111aaaa"]),
        ("0,9,1", ["GPU-0000aaaa"]),
        ("0,-1,1", ["GPU-0000aaaa"]),
        ("0,0", []),
        ("GPU-1111aaaa", ["GPU-1111aaaa"]),
        ("GPU-11", ["GPU-1111aaaa"]),
        ("GPU-", []),
        ("GPU-none", []),
        ("MIG-b", ["MIG-b"]),
        ("MIG-a,GPU-0000aaaa", ["MIG-a", "GPU-0000aaaa"]),
        ("2", ["MIG-a"]),
        ("GPU-2222", ["MIG-a"]),
        ("gpu 1", []),
    ],
)
def test_cuda_visible_devices(value: str | None, uuids: list[str]) -> None:
    environ = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    assert [device.uuid for device in visible_devices(DEVICES, environ)] == uuids


def test_indices_of_unlike_gpus_are_not_guessed_at() -> None:
    mixed = (DEVICES[0], replace(DEVICES[1], name="NVIDIA T4"))
    assert visible_devices(mixed, {"CUDA_VISIBLE_DEVICES": "1"}) == mixed
    assert visible_devices(mixed, {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == mixed[1:]


def test_the_driver_is_opened_once() -> None:
    nvml = StandInNvml.of(gpu())
    driver = NvmlDriver(nvml)
    for _ in range(3):
        driver.snapshot()
    assert nvml.calls.count("init") == 1
    driver.close()
    driver.snapshot()
    assert nvml.calls.count("init") == 2
    assert nvml.calls.count("shutdown") == 1


@pytest.mark.parametrize("number", [9, 12, 15, 999])
def test_a_driver_that_breaks_is_unmeasurable_and_opened_anew(number: int) -> None:
    nvml = StandInNvml.of(gpu(compute=[use(os.getpid(), GIB)]))
    driver = NvmlDriver(nvml)
    driver.snapshot()
    probe = NvmlProbe(nvml=driver)
    nvml.broken = number
    verdict = probe.read_now([by_pid(os.getpid())])
    assert isinstance(verdict, Unmeasurable)
    nvml.broken = None
    assert nvml.calls.count("init") == 1
    assert probe.read_now([by_pid(os.getpid())]).resident_bytes == GIB
    assert nvml.calls.count("init") == 2


@pytest.mark.parametrize(("uuid", "broken"), [("GPU-0000aaaa", 999), ("GPU-none", None)])
async def test_free_memory_that_the_driver_does_not_give_is_unmeasurable(uuid: str, broken: int | None) -> None:
    nvml = StandInNvml.of(gpu(), gpu(1, memory=None))
    nvml.broken = broken
    found = await ThisHost(NvmlDriver(nvml)).free_memory([uuid], [], need_bytes=1, deadline_s=5)
    assert isinstance(found, Unmeasurable)
    assert uuid in found.reason or "999" in found.reason


def test_clients_of_mps_are_found_where_the_driver_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = StandInNvml.of(gpu(compute=[use(20, GIB)]))
    clients = nvml._processes([use(10, 3 * GIB)])
    monkeypatch.setattr(StandInNvml, "nvmlDeviceGetMPSComputeRunningProcesses", lambda *_: clients, raising=False)
    reading = measure(NvmlDriver(nvml).snapshot(), frozenset({10}), proc_fs({10: (10,), 20: (20,)}))
    assert isinstance(reading, Reading)
    assert reading.resident_bytes == 3 * GIB


def test_no_driver_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(DriverUnavailable, match="pip install nvidia-ml-py"):
        NvmlDriver().snapshot()


# real processes below


GRANDCHILD = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {!r}], stdout=1); p.wait()"


@pytest.fixture
def parent_and_grandchild() -> Iterator[tuple[int, int]]:
    """A process and its grandchild."""
    last = "import os, sys; print(os.getpid(), flush=True); sys.stdin.read()"
    code = GRANDCHILD.format(GRANDCHILD.format(last))
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdin is not None
    try:
        yield parent.pid, int(parent.stdout.readline())
    finally:
        parent.stdin.close()
        parent.stdout.close()
        parent.wait(10)


async def test_the_memory_is_in_the_grandchild(parent_and_grandchild: tuple[int, int]) -> None:
    parent, grandchild = parent_and_grandchild
    card = gpu(compute=[use(grandchild, 2 * GIB), use(1, GIB)])
    probe = NvmlProbe(nvml=NvmlDriver(StandInNvml.of(card)))
    reading = await probe.read([by_pid(parent)], deadline_s=5)
    assert isinstance(reading, Reading)
    assert reading.resident_bytes == 2 * GIB
    assert [holder.pid for holder in reading.holders] == [grandchild]
    assert "python" in reading.holders[0].command


async def test_a_pid_that_was_given_to_another_process_is_not_measured() -> None:
    card = gpu(compute=[use(os.getpid(), 2 * GIB)])
    probe = NvmlProbe(nvml=NvmlDriver(StandInNvml.of(card)))
    stale = Process(node_name(), os.getpid(), by_pid(os.getpid()).start_time - 100)
    verdict = await probe.read([stale], deadline_s=5)
    assert isinstance(verdict, Unmeasurable)
    assert "no process of the engine is left" in verdict.reason


async def test_a_process_elsewhere_needs_its_agent() -> None:
    probe = NvmlProbe(nvml=NvmlDriver(StandInNvml.of(gpu())))
    verdict = await probe.read([Process("elsewhere", 1, 0.0)], deadline_s=5)
    assert isinstance(verdict, Unmeasurable)
    assert "agent=HOST:PORT" in verdict.reason


async def test_a_driver_that_hangs_is_given_up_and_the_loop_goes_on() -> None:
    hung = threading.Event()

    class Hangs(StandInNvml):
        def nvmlInit(self) -> None:
            hung.wait(30)

    probe = NvmlProbe(nvml=NvmlDriver(Hangs({"driver": "1", "devices": []})))
    begun = time.monotonic()
    beside = asyncio.create_task(asyncio.sleep(0.05))
    verdict = await probe.read([by_pid(os.getpid())], deadline_s=0.2)
    assert beside.done()
    assert time.monotonic() - begun < 2
    assert isinstance(verdict, Unmeasurable)
    assert verdict.reason == "reading GPU memory from the NVIDIA driver took more than 0.2 s"
    hung.set()
