"""Records the NVIDIA driver's answers, in the form that `tests/residual/stand_in_nvml.py` replays."""

from __future__ import annotations

import importlib
from typing import Any


def answers() -> dict[str, Any]:
    """The driver's present answers to every query of the probe. UUIDs are replaced, since they identify one card."""
    nvml = importlib.import_module("pynvml")
    nvml.nvmlInit()
    try:
        count = nvml.nvmlDeviceGetCount()
        return {
            "driver": nvml.nvmlSystemGetDriverVersion(),
            "devices": [_card(nvml, nvml.nvmlDeviceGetHandleByIndex(index), index) for index in range(count)],
        }
    finally:
        nvml.nvmlShutdown()


def _card(nvml: Any, handle: Any, index: int) -> dict[str, Any]:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)
    return {
        "index": index,
        "uuid": f"GPU-recorded-{index}",
        "name": nvml.nvmlDeviceGetName(handle),
        "capability": list(nvml.nvmlDeviceGetCudaComputeCapability(handle)),
        "memory": {"total": memory.total, "used": memory.used, "free": memory.free},
        "compute": _processes(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle),
        "graphics": _processes(nvml, nvml.nvmlDeviceGetGraphicsRunningProcesses, handle),
        "mig": _mig(nvml, handle),
    }


def _processes(nvml: Any, ask: Any, handle: Any) -> Any:
    try:
        return [{"pid": each.pid, "used": each.usedGpuMemory} for each in ask(handle)]
    except nvml.NVMLError as error:
        return error.value


def _mig(nvml: Any, handle: Any) -> dict[str, Any] | None:
    try:
        return {"mode": nvml.nvmlDeviceGetMigMode(handle)[0], "instances": []}
    except nvml.NVMLError:
        return None
