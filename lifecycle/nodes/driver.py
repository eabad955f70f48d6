"""What the NVIDIA driver says: devices, MIG instances, and the processes that hold their memory.

The library is opened once for the process. Every question blocks: ask in a thread (`offloop`).
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

#: NVML's error numbers that mean something else than "broken". Source: nvml.h, nvmlReturn_t.
NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, NO_FUNCTION, OTHER_VERSION = 3, 4, 6, 13, 25

#: A question that this device, this driver or this user cannot have answered; every other error breaks the snapshot.
NO_ANSWER = frozenset({NOT_SUPPORTED, NO_PERMISSION, NO_FUNCTION, OTHER_VERSION})

#: A figure that the driver does not know comes as this, where the binding does not make None of it.
NOT_AVAILABLE = (1 << 64) - 1


class DriverUnavailable(Exception):
    """The driver cannot be asked; the message says why and what would help."""


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, or one MIG instance of a GPU (`parent` is then the GPU's UUID). None: the driver does not say."""

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
class Use:
    """One process on one device, numbered as the driver does it. `used_bytes` None: the driver says N/A."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that the driver said at one time. `refused` maps a device to why its processes are not listed."""

    driver: str
    devices: tuple[Device, ...]
    uses: Mapping[str, tuple[Use, ...]]
    refused: Mapping[str, str] = field(default_factory=dict)

    def device(self, uuid: str) -> Device:
        """The device of this UUID; KeyError if there is none."""
        return {device.uuid: device for device in self.devices}[uuid]


class NvmlDriver:
    """The driver, through nvidia-ml-py; `nvml` stands in for the module in tests."""

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml
        self._lock = threading.Lock()
        self._opened_by: int | None = None
        self._cards: list[tuple[Any, Device]] = []

    def snapshot(self) -> Snapshot:
        """What the driver says now. Raises DriverUnavailable."""
        with self._lock:
            nvml = self._open()
            try:
                return self._ask(nvml)
            except nvml.NVMLError as error:
                self._opened_by = None  # a device was lost or the driver reloaded: begin anew next time
                raise DriverUnavailable(f"the NVIDIA driver answered {error}; see nvidia-smi on this host") from error

    def close(self) -> None:
        """The library is let go."""
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
            raise DriverUnavailable(f"there is no NVIDIA driver to ask ({error})") from error
        self._opened_by = os.getpid()
        return nvml

    def _ask(self, nvml: Any) -> Snapshot:
        devices: list[Device] = []
        uses: dict[str, tuple[Use, ...]] = {}
        refused: dict[str, str] = {}
        for handle, static in self._cards:
            for each, device in _instances(nvml, handle, static):
                devices.append(device)
                try:
                    uses[device.uuid] = _uses(nvml, each)
                except nvml.NVMLError as error:
                    if error.value not in NO_ANSWER:
                        raise
                    uses[device.uuid] = ()
                    refused[device.uuid] = f"the driver does not list the processes of {device} ({error})"
        return Snapshot(_text(nvml.nvmlSystemGetDriverVersion()), tuple(devices), uses, refused)


_ONE = NvmlDriver()


def driver() -> NvmlDriver:
    """The driver of this host, shared by everyone in this process."""
    return _ONE


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


def _instances(nvml: Any, handle: Any, static: Device) -> Iterator[tuple[Any, Device]]:
    """The GPU itself, or its MIG instances where it is divided: memory and processes are counted by instance."""
    if not _divided(nvml, handle):
        yield handle, _sized(nvml, handle, static)
        return
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        instance = _answer(nvml, partial(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number))
        if instance is not None:
            uuid = _text(nvml.nvmlDeviceGetUUID(instance))
            part = Device(uuid, static.index, static.name, static.major, static.minor, parent=static.uuid)
            yield instance, _sized(nvml, instance, part)


def _divided(nvml: Any, handle: Any) -> bool:
    mode = _answer(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle))
    return mode is not None and mode[0] == 1


def _sized(nvml: Any, handle: Any, static: Device) -> Device:
    told = _memory(nvml, handle)
    if told is None:
        return static
    return Device(
        static.uuid,
        static.index,
        static.name,
        static.major,
        static.minor,
        int(told.total),
        int(told.used),
        int(told.free),
        static.parent,
    )


def _memory(nvml: Any, handle: Any) -> Any:
    """The second version counts as nvidia-smi does: what the driver reserves for itself is not used by anybody."""
    second = getattr(nvml, "nvmlMemory_v2", None)
    if second is not None:
        told = _answer(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle, second))
        if told is not None:
            return told
    return _answer(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle))


def _uses(nvml: Any, handle: Any) -> tuple[Use, ...]:
    """Each process once: one that computes and draws stands in both lists, with the same memory."""
    found: dict[int, int | None] = {}
    for each in _listed(nvml, handle):
        used = _bytes(each.usedGpuMemory)
        before = found.get(each.pid)
        found[each.pid] = used if before is None else max(before, used or 0)
    return tuple(Use(pid, used) for pid, used in sorted(found.items()))


def _listed(nvml: Any, handle: Any) -> list[Any]:
    """Those that compute, draw, or compute as clients of MPS; only the first must be known to the driver."""
    listed = list(nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    for name in ("nvmlDeviceGetGraphicsRunningProcesses", "nvmlDeviceGetMPSComputeRunningProcesses"):
        ask = getattr(nvml, name, None)
        if ask is not None:
            listed += _answer(nvml, partial(ask, handle)) or ()
    return listed


def _bytes(value: int | None) -> int | None:
    return None if value is None or value == NOT_AVAILABLE else int(value)


def _answer(nvml: Any, ask: Callable[[], Any]) -> Any:
    """The answer; None where there is none to be had, or nothing there to ask about (a MIG slot that is empty)."""
    try:
        return ask()
    except nvml.NVMLError as error:
        if error.value in NO_ANSWER or error.value == NOT_FOUND:
            return None
        raise


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
