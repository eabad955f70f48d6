"""The NVIDIA driver's figures: devices, MIG instances, and the processes that hold their memory.

NVML is initialised once in each process. Every call blocks; from an event loop, ask for `shared_snapshot`.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from .in_thread import Unavailable
from .process_table import Roots, trees
from .shared_scan import SharedAnswers, SharedScan

#: NVML error numbers that do not mean that the driver is broken. Source: nvml.h, nvmlReturn_t.
NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, NO_FUNCTION, OTHER_VERSION = 3, 4, 6, 13, 25

#: Errors of a query that this device, driver or user does not support; any other error fails the whole snapshot.
UNSUPPORTED = frozenset({NOT_SUPPORTED, NO_PERMISSION, NO_FUNCTION, OTHER_VERSION})

#: NVML's value for a figure that it does not know, in bindings that do not turn it into None.
NOT_AVAILABLE = (1 << 64) - 1


class DriverUnavailable(Unavailable):
    """The driver could not be queried; the message says why and what would help."""


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, or one MIG instance of a GPU (`parent` is then the GPU's UUID).

    `major` and `minor` are the compute capability. Sizes are None where the driver does not give them.
    """

    uuid: str
    index: int
    name: str
    major: int
    minor: int
    total_bytes: int | None = None
    used_bytes: int | None = None
    free_bytes: int | None = None
    parent: str | None = None

    def __str__(self) -> str:
        kind = "MIG instance of GPU" if self.parent else "GPU"
        return f"{kind} {self.index} ({self.name}, {self.uuid})"


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """Memory of one device held by one process, under the pid that the driver uses; None where it says N/A."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All devices and the processes on each (by device UUID), read at one time.

    `refused` maps a device's UUID to the reason why its processes are not listed.
    """

    driver: str
    devices: tuple[Device, ...]
    usages: Mapping[str, tuple[ProcessUsage, ...]]
    refused: Mapping[str, str] = field(default_factory=dict)

    def device(self, uuid: str) -> Device:
        """Returns the device of this UUID; raises KeyError if there is none."""
        return {device.uuid: device for device in self.devices}[uuid]


class NvmlDriver:
    """The driver, queried through nvidia-ml-py; tests pass an object that replaces the module as `nvml`."""

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml
        self._lock = threading.Lock()
        self._opened_by: int | None = None
        self._cards: list[tuple[Any, Device]] = []
        self._snapshots = SharedScan(lambda: self.snapshot())
        self._with_trees: SharedAnswers[Roots, tuple[Snapshot, frozenset[int]]] = SharedAnswers(self.with_trees)

    async def shared_snapshot(self, *, deadline_s: float) -> Snapshot:
        """Returns figures that were read after this was called, once for all who ask meanwhile.

        Raises TimeoutError and DriverUnavailable.
        """
        return await self._snapshots.result(deadline_s=deadline_s)

    async def shared_with_trees(self, roots: Roots, *, deadline_s: float) -> tuple[Snapshot, frozenset[int]]:
        """Returns such figures, and the pids of the trees of these processes. Raises as `shared_snapshot`."""
        return await self._with_trees.ask(roots, deadline_s=deadline_s)

    def with_trees(self, questions: Collection[Roots]) -> dict[Roots, tuple[Snapshot, frozenset[int]]]:
        """Returns the figures of now and, for each question, the pids of its trees. Raises DriverUnavailable."""
        before, snapshot = trees(questions), self.snapshot()
        # Of a process that was born or ended during the snapshot, the pid stands in one of the two listings only.
        after = trees(questions)
        return {roots: (snapshot, frozenset(before[roots].keys() | after[roots].keys())) for roots in questions}

    async def taken(self, *, deadline_s: float) -> NvmlDriver:
        """Returns a driver that answers with such a snapshot, or that it is unavailable, as often as it is asked."""
        try:
            return _Taken(await self.shared_snapshot(deadline_s=deadline_s))
        except DriverUnavailable as error:
            return _Taken(error)

    def snapshot(self) -> Snapshot:
        """Returns the driver's figures of now. Raises DriverUnavailable."""
        with self._lock:
            nvml = self._open()
            try:
                return self._read(nvml)
            except nvml.NVMLError as error:
                self._opened_by = None  # a device was lost or the driver reloaded: initialise again next time
                raise DriverUnavailable(f"the NVIDIA driver answered {error}; see nvidia-smi on this host") from error

    def close(self) -> None:
        """NVML is shut down; the next snapshot initialises it again."""
        with self._lock:
            if self._opened_by == os.getpid():
                self._nvml.nvmlShutdown()
            self._opened_by = None

    def _open(self) -> Any:
        if self._opened_by == os.getpid():
            return self._nvml
        nvml = self._nvml = self._nvml or _module()
        try:
            nvml.nvmlInit()
            self._cards = [_card(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:
            raise DriverUnavailable(f"there is no NVIDIA driver to query ({error})") from error
        self._opened_by = os.getpid()
        return nvml

    def _read(self, nvml: Any) -> Snapshot:
        devices: list[Device] = []
        usages: dict[str, tuple[ProcessUsage, ...]] = {}
        refused: dict[str, str] = {}
        for handle, card in self._cards:
            for each, device in _instances(nvml, handle, card):
                devices.append(device)
                try:
                    usages[device.uuid] = _usages(nvml, each)
                except nvml.NVMLError as error:
                    if error.value not in UNSUPPORTED:
                        raise
                    usages[device.uuid] = ()
                    refused[device.uuid] = f"the driver does not list the processes of {device} ({error})"
        return Snapshot(_text(nvml.nvmlSystemGetDriverVersion()), tuple(devices), usages, refused)


class _Taken(NvmlDriver):
    """Figures that were read already, or why they could not be."""

    def __init__(self, figures: Snapshot | DriverUnavailable) -> None:
        super().__init__()
        self._figures = figures

    def snapshot(self) -> Snapshot:
        """Returns those figures, or raises why there are none."""
        if isinstance(self._figures, DriverUnavailable):
            raise self._figures
        return self._figures


_SHARED = NvmlDriver()


def driver() -> NvmlDriver:
    """Returns the driver of this host; one object serves the whole process."""
    return _SHARED


def _module() -> Any:
    try:
        return importlib.import_module("pynvml")  # only here: it loads the driver's library
    except ModuleNotFoundError as error:
        raise DriverUnavailable("the package nvidia-ml-py is not installed; pip install nvidia-ml-py") from error


def _card(nvml: Any, index: int) -> tuple[Any, Device]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    uuid, name = _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle))
    return handle, Device(uuid, index, name, major, minor)


def _instances(nvml: Any, handle: Any, card: Device) -> Iterator[tuple[Any, Device]]:
    """The GPU itself, or its MIG instances where it is divided: memory and processes are counted by instance."""
    if not _divided(nvml, handle):
        yield handle, _sized(nvml, handle, card)
        return
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        instance = _supported(nvml, partial(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number))
        if instance is not None:
            uuid = _text(nvml.nvmlDeviceGetUUID(instance))
            part = replace(card, uuid=uuid, parent=card.uuid)
            yield instance, _sized(nvml, instance, part)


def _divided(nvml: Any, handle: Any) -> bool:
    mode = _supported(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle))
    return mode is not None and mode[0] == 1


def _sized(nvml: Any, handle: Any, device: Device) -> Device:
    info = _memory(nvml, handle)
    if info is None:
        return device
    return replace(device, total_bytes=int(info.total), used_bytes=int(info.used), free_bytes=int(info.free))


def _memory(nvml: Any, handle: Any) -> Any:
    """Version 2 of the structure, which counts as nvidia-smi does: memory reserved by the driver is not `used`."""
    second = getattr(nvml, "nvmlMemory_v2", None)
    if second is not None:
        info = _supported(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle, second))
        if info is not None:
            return info
    return _supported(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle))


def _usages(nvml: Any, handle: Any) -> tuple[ProcessUsage, ...]:
    """Each process once: one that computes and draws is in both of the driver's lists, with the same memory."""
    found: dict[int, int | None] = {}
    for each in _listed(nvml, handle):
        used = _bytes(each.usedGpuMemory)
        before = found.get(each.pid)
        found[each.pid] = used if before is None else max(before, used or 0)
    return tuple(ProcessUsage(pid, used) for pid, used in sorted(found.items()))


def _listed(nvml: Any, handle: Any) -> list[Any]:
    """Processes that compute, draw, or compute as MPS clients; drivers need not support the last two lists."""
    listed = list(nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    for name in ("nvmlDeviceGetGraphicsRunningProcesses", "nvmlDeviceGetMPSComputeRunningProcesses"):
        query = getattr(nvml, name, None)
        if query is not None:
            listed += _supported(nvml, partial(query, handle)) or ()
    return listed


def _bytes(value: int | None) -> int | None:
    return None if value is None or value == NOT_AVAILABLE else int(value)


def _supported(nvml: Any, query: Callable[[], Any]) -> Any:
    """The result of a query; None where it is not supported, or where its object does not exist (an empty MIG slot)."""
    try:
        return query()
    except nvml.NVMLError as error:
        if error.value in UNSUPPORTED or error.value == NOT_FOUND:
            return None
        raise


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
